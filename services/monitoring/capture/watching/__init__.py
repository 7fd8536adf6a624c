"""Watching: which files land in the folders of cameras, when each is whole, and what it holds.

What the kernel tells only says where to look; what is taken follows from looking. So a watcher that was away, or was
told too little, finds by looking through all folders what it missed. A file is known by its size and times, a photo by
its file and the hash of its content, as a row: the same is never taken twice, whoever looks.

`files` has all that touches the disk, in threads; `observer` asks the kernel; `domain` decides. No picture is decoded
here: of a file's content only its first and last bytes are compared with what its format begins and ends with.
"""
