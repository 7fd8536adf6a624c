"""A check and a measurement of what runs on a GPU: `python -m bench.gpu`, or `make gpu-check`.

Owns the parts that are measured, the processes they run in, and the table and the JSON that come of them.

"Through the worker" means the whole mesh, started by `bench.stacks`: gateway, tasks service, and the worker with its
child. Nothing of it is replaced, so that there is no imitation of the scheduler to keep in step with the protocol, and
tasks form batches in the worker as they do in production: a direct `InferenceService.Run` takes a slot for each task
and forms none. What the mesh adds to a picture (25 ms, see `bench/picture.py`) is the same for any number of steps, and
does not show in seconds a step, which are a difference.

To add a part: write a generator of `Figure`s and register it in `parts.PARTS`.
"""
