"""Which files are photos, and when one is whole. Pure."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

# What the project's guarded door decodes and cameras write, by how they name it; `.hif` is the HEIF of Canon, Fujifilm
# and Sony.
SUFFIXES = (b".jpg", b".jpeg", b".png", b".webp", b".tif", b".tiff", b".heic", b".heif", b".hif", b".avif")
HEAD_BYTES = 16
TAIL_BYTES = 4096
_MOST_CAMERA_CHARS = 128
_LONGEST_PAUSE_SECONDS = 300.0
_STAMP = struct.Struct("<3q")

_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_BOXES = b"ftyp"
_TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class Wholeness(enum.Enum):
    """What the first and last bytes of a file tell."""

    WHOLE = "whole"
    PART = "part"
    # The format does not tell by its end.
    OPEN = "open"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What a file is known by without reading it.

    Attributes:
        size: Its bytes.
        modified_ns: When its content was changed last.
        changed_ns: When anything of it was, which nobody can set back.
    """

    size: int
    modified_ns: int
    changed_ns: int

    def packed(self) -> bytes:
        """Return the same in the fewest bytes: one is kept of each file that is known."""
        return _STAMP.pack(self.size, self.modified_ns, self.changed_ns)


@dataclass(slots=True)
class PhotoCandidate:
    """A file that is to be taken once it is whole.

    Attributes:
        since: Since when it is as it is, in monotonic seconds.
        closed: Whether who wrote it has closed it.
        stamp: What it was known by when it was looked at last.
        looked_into: What it was known by when its first and last bytes were read last.
        unread: Why it could not be read; empty where it was not tried, or could be.
        reads: How often it could not be.
        again_at: When it is read again, in monotonic seconds.
    """

    since: float
    closed: bool
    stamp: FileStamp | None = None
    looked_into: FileStamp | None = None
    unread: str = ""
    reads: int = 0
    again_at: float = 0.0

    def put_off(self, reason: str, now: float) -> None:
        """Have it wait because it could not be read, each time longer."""
        self.unread = reason
        self.again_at = now + min(2.0 ** min(self.reads, 10), _LONGEST_PAUSE_SECONDS)
        self.reads += 1


def is_photo_name(name: bytes) -> bool:
    """Whether a file is called as photos are; hidden ones are somebody's in the making."""
    return not name.startswith(b".") and name.lower().endswith(SUFFIXES)


def camera_of(name: bytes) -> str | None:
    """Return the camera that a folder below the root is; None for one that can be none."""
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() and len(text) <= _MOST_CAMERA_CHARS and not text.startswith(".") else None


def wholeness(head: bytes, tail: bytes, size: int) -> Wholeness:
    """Tell whether a file ends as its format does.

    Args:
        head: Its first bytes.
        tail: Its last bytes.
        size: Its size.
    """
    if head.startswith(_JPEG):
        # Some cameras fill the file up with zeros.
        return _whole(tail.rstrip(b"\0").endswith(_JPEG_END))
    if head.startswith(_PNG):
        return _whole(tail.endswith(_PNG_END))
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _whole(size >= int.from_bytes(head[4:8], "little") + 8)
    # Where HEIF and AVIF end is told in the midst of the file.
    return Wholeness.OPEN if head.startswith(_TIFFS) or head[4:8] == _BOXES else Wholeness.FOREIGN


def _whole(ends: bool) -> Wholeness:  # noqa: FBT001 -- the one thing that it turns into a word
    return Wholeness.WHOLE if ends else Wholeness.PART
