"""Datasets: from the pictures of a training to what the trainer learns from. Imports no torch.

`making` is the entry. It brings the pictures in (every one judged through the one decode door, `meshkit.images`), has
`child` work on them one at a time, has captions written, and leaves a folder:

- `dataset.json` is what the trainer reads: pictures, captions, buckets, masks, and a hash of all of it
- `manifest.json` is what a person looks at: names, sources, crops, warnings, thumbnails, and what was rejected and why
- `images/`, `masks/`, `thumbnails/` hold the files, named by the hash of their pixels

`transforms` reads what a caller asks to have done to the pictures; `drawing` does it. `buckets` chooses the sizes that
the model is trained at. `fingerprints` finds pictures that are sent twice. `captions` puts a caption together from what
`describer` sees, or what a service says (`caption_service`). `masks` marks what a masked loss looks at.
"""
