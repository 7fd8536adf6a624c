"""`/api/jobs`: tasks, workflows and trainings as jobs of one kind, read and told through the mesh's own JSON surface.

`calls` asks that surface as the caller would, `reading` turns what it answers into jobs, `sources` knows the three
kinds, `pages` are the endpoints, `jobs_openapi` is what the document says of them.
"""
