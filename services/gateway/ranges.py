"""The `Range` header (RFC 9110, 14): one range of bytes; several at once are answered with the whole."""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})", re.ASCII | re.IGNORECASE)


class RangeError(Exception):
    """No byte of the content lies in the range."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A range of bytes, both ends included."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """How many bytes it has."""
        return self.end - self.start + 1


def parse_range(text: str, size: int, if_range: str, etag: str) -> ByteRange | None:
    """Return the range that a request asks for; None for the whole.

    Args:
        text: Value of `Range`.
        size: Bytes of the content.
        if_range: Value of `If-Range`; the range holds only for that version.
        etag: Version of the content.

    Raises:
        RangeError: it lies outside of the content.
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None or match.groups() == ("", "") or (if_range and if_range != etag):
        return None
    first, last = match.groups()
    if first and last and int(first) > int(last):
        return None
    if not first:
        start, end = max(0, size - int(last)), size - 1
        if int(last) == 0:
            raise RangeError
    else:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
    if start >= size:
        raise RangeError
    return ByteRange(start, end)
