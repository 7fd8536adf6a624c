"""`python -m meshkit.images.child`: decodes images for `checks`, which starts it; one at a time.

It holds no secret, writes no file but the one it is handed, and may take no more memory than it is told.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import resource
import socket
import sys
from collections.abc import Sequence
from typing import BinaryIO, cast

from atelier.mesh.v1.images_pb2 import ImageAnswer, ImageFacts, ImageRefusal, ImageRequest

from meshkit.children import die_with_parent
from meshkit.errors import ErrorKind, MeshError
from meshkit.images.colours import make_for_work
from meshkit.images.decoding import MoreNeededError, inspect
from meshkit.images.limits import MEMBER, ImageGrant, ImageLimits
from meshkit.images.thumbnails import make_thumbnail
from meshkit.wire import FrameDecoder, pack

_READ_BYTES = 64 * 1024
_MOST_FILES = 2
# What the interpreter and its libraries map before an image is opened.
_OWN_ADDRESS_BYTES = 512 * 1024 * 1024
_NICENESS = 5  # a service's event loop goes before the images that it waits for


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer until the parent closes the socket; returns the exit status."""
    parser = argparse.ArgumentParser(description="Decodes images for a service, which starts it.")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--memory", type=int, required=True)
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    _limit_resources(options.memory)
    with socket.socket(fileno=options.fd) as sock:
        os.set_inheritable(options.fd, False)  # noqa: FBT003 -- os's own signature
        _serve(sock)
    return 0


def _limit_resources(memory_bytes: int) -> None:
    os.nice(_NICENESS)
    # Some systems know a limit and do not let it be set; the parent's time limit holds there all the same.
    for limit, most in ((resource.RLIMIT_AS, memory_bytes + _OWN_ADDRESS_BYTES), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, (most, most))


def _serve(sock: socket.socket) -> None:
    frames, files = FrameDecoder(ImageRequest), list[int]()
    sock.sendall(pack(ImageAnswer()))  # it is ready: whatever ends it from now on may be an image's doing
    while True:
        data, received, _, _ = socket.recv_fds(sock, _READ_BYTES, _MOST_FILES)
        files += received
        if not data:
            return
        for request in frames.feed(data):
            with contextlib.ExitStack() as stack:
                file = cast("BinaryIO", stack.enter_context(os.fdopen(files[0], "rb")))
                into = None
                if len(files) > 1:
                    into = cast("BinaryIO", stack.enter_context(os.fdopen(files[1], "wb")))
                files.clear()
                answer = answer_to(request, file, into)
            sock.sendall(pack(answer))
            # Frames of animations hold each other; their memory must not wait for the collector.
            gc.collect()
            if not gc.get_freeze_count():
                gc.freeze()  # what is left are modules: to look at them each time takes longer than most images do


def answer_to(request: ImageRequest, file: BinaryIO, into: BinaryIO | None = None) -> ImageAnswer:
    """Judge one image.

    Args:
        request: What is asked.
        file: The image.
        into: Takes what is made of the image.
    """
    limits = ImageLimits(
        max_bytes=request.max_bytes,
        max_pixels=request.max_pixels,
        max_side=request.max_side,
        max_frames=request.max_frames,
        max_total_pixels=request.max_total_pixels,
        formats=tuple(request.formats),
    )
    grant = ImageGrant(request.granted_bytes, request.granted_pixels)
    made, note = False, ""
    try:
        if request.for_work and into is not None:
            into.seek(0)
            into.truncate()  # a child that was lost may have begun it
            work = make_for_work(file, into, limits, path=MEMBER, grant=grant)
            info, made, note = work.info, work.made, work.note
        elif request.thumbnail_width and into is not None:
            into.seek(0)
            into.truncate()
            info = make_thumbnail(file, into, request.thumbnail_width, limits, path=MEMBER, grant=grant)
            made = True
        else:
            info = inspect(file, limits, path=MEMBER, grant=grant)
    except MoreNeededError as error:
        return ImageAnswer(needed_bytes=error.bytes)
    except MeshError as error:
        if error.kind is not ErrorKind.INVALID:
            return ImageAnswer(refusal=ImageRefusal(message=error.message.removeprefix(MEMBER).lstrip()))
        violation = error.violations[0]
        return ImageAnswer(refusal=ImageRefusal(message=violation.message, type=violation.type))
    except MemoryError:
        return ImageAnswer(
            refusal=ImageRefusal(message="needs more memory to decode than one image may take", type="image_memory")
        )
    facts = ImageFacts(
        format=info.format, width=info.width, height=info.height, frames=info.frames, made=made, note=note
    )
    return ImageAnswer(facts=facts)


if __name__ == "__main__":
    sys.exit(main())
