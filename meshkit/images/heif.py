"""HEIF pictures, the HEIC of phones and the HIF of cameras, decoded by libheif. Only `decoding` calls it.

libheif comes with the package pillow-heif, which is loaded by the first such picture, into the process that decodes it.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

FORMAT = "HEIF"
HEAD_BYTES = 256
"""First bytes of a file that tell whether it is one."""
# ISO/IEC 23008-12, annex B, and 23000-22: what the first box of a file says that it can be read as. `mif1` alone names
# no codec, and is said by AVIF files too.
_HEVC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_ANY_CODEC = frozenset({b"mif1", b"mif2", b"msf1"})
_AV1 = frozenset({b"avif", b"avis"})
# Boxes of a file (ISO/IEC 14496-12, 4.2) that a picture is in.
_NEEDED = frozenset({b"ftyp", b"meta", b"mdat", b"moov"})
_MOST_BOXES = 1000
# Stacks and arenas of the decoder's threads, which are reserved and mostly not used.
_RESERVED_BYTES = 256 * 1024 * 1024


def is_heif(head: bytes) -> bool:
    """Tell from the first bytes of a file whether it is a HEIF picture, other than AVIF."""
    if head[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[place : place + 4] for place in range(16, end, 4))}
    return bool(brands & _HEVC) or (bool(brands & _ANY_CODEC) and not brands & _AV1)


def ends_early(file: BinaryIO, size: int) -> bool:
    """Tell whether a file is the beginning of one: libheif would leave the tiles that are missing empty.

    Args:
        file: The file.
        size: Its bytes.
    """
    place = 0
    for _ in range(_MOST_BOXES):
        file.seek(place)
        head = file.read(16)
        if len(head) < 8:
            return False  # the end, or what others put behind it
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if kind in _NEEDED and place + length > size:
            return True
        if length < 8:  # up to the end of the file, or no box
            return False
        place += length
    return False


def register() -> None:
    """Have Pillow open HEIF pictures: the primary one of a file, without thumbnails, depth and what else goes with it.

    libheif turns it as its file says, and rids its EXIF of what says so too; more than eight bits become eight.

    Raises:
        ImportError: libheif is not installed, or cannot be loaded.
    """
    import pillow_heif  # noqa: PLC0415 -- loaded by the first such picture
    from PIL import Image  # noqa: PLC0415 -- as above

    pillow_heif.libheif_version()  # the package can be imported without its library
    options = {"thumbnails": False, "depth_images": False, "aux_images": False}
    pillow_heif.register_heif_opener(decode_threads=1, **options)
    # Its own look at the first bytes knows fewer files than `is_heif`, which goes before it.
    Image.register_open(FORMAT, pillow_heif.HeifImageFile)


@contextlib.contextmanager
def held_to(most: int) -> Iterator[None]:
    """Hold this process to so many bytes more than it has: what is compressed may be larger than the file says.

    Args:
        most: Bytes.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [one for one in (soft, hard) if one != resource.RLIM_INFINITY]
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        wanted = pages * os.sysconf("SC_PAGE_SIZE") + most + _RESERVED_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (min([wanted, *bounds]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
