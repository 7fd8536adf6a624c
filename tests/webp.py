"""WebP files that are small and stand for much: solid pictures, and animations of them."""

import io
import struct

from PIL import Image


def solid_webp(width: int, height: int) -> bytes:
    """A picture of one colour, lossless: a hundred bytes or so, whatever its size."""
    out = io.BytesIO()
    Image.new("RGB", (width, height), (9, 200, 9)).save(out, "WEBP", lossless=True, method=0, quality=0)
    return out.getvalue()


def animated_webp(width: int, height: int, frames: int) -> bytes:
    """An animation whose frames are all the same solid picture."""
    bits = solid_webp(width, height)[12:]
    size = _three(width - 1) + _three(height - 1)
    frame = _chunk(b"ANMF", _three(0) + _three(0) + size + _three(100) + b"\0" + bits)
    head = _chunk(b"VP8X", b"\x02\0\0\0" + size) + _chunk(b"ANIM", bytes(6))
    body = b"WEBP" + head + frame * frames
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _three(value: int) -> bytes:
    return struct.pack("<I", value)[:3]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
