"""How much a JSON text holds, before it is parsed.

A parser builds an object for each member and item and lets nothing else run meanwhile. To count them can be done in
pieces, in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator

_PIECE_BYTES = 256 * 1024
_MARKS = (b",", b"{", b"[")


def has_more_elements(content: bytes, most: int) -> bool:
    """Tell whether a JSON text has more members, items, objects and arrays, counted together, than `most`.

    It counts commas and opening brackets outside of strings. Of what is no JSON the answer means nothing.

    Args:
        content: The text, in UTF-8.
        most: How many it may have.
    """
    if _marks(content) <= most:
        return False
    found, inside = 0, False
    for piece in _pieces(content):
        # Without escapes, every second part between quotes is text.
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        found += _marks(b"".join(parts[inside::2]))
        if found > most:
            return True
        inside ^= len(parts) % 2 == 0
    return False


def _marks(content: bytes) -> int:
    return sum(map(content.count, _MARKS))


def _pieces(content: bytes) -> Iterator[bytes]:
    """Cut a text into pieces none of which ends within an escape."""
    start = 0
    while start < len(content):
        piece = content[start : start + _PIECE_BYTES]
        backslashes = len(piece) - len(piece.rstrip(b"\\"))
        if backslashes % 2 and start + len(piece) < len(content):
            piece = piece[:-1]
        yield piece
        start += len(piece)
