"""Pictures that are small as files and large as pixels."""

from __future__ import annotations

import io
import struct

from PIL import Image

SIDE = 8_000


def webp_image(side: int = SIDE) -> bytes:
    """Return the VP8L chunk of one plain picture, 64 MP by default."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(out, "WEBP", lossless=True, method=0)
    return out.getvalue()[12:]


def riff(content: bytes) -> bytes:
    """Return a WebP file of these chunks."""
    return b"RIFF" + struct.pack("<I", len(content) + 4) + b"WEBP" + content


def animated_webp(image: bytes, frames: int, side: int = SIDE) -> bytes:
    """Wrap one picture as every frame of an animation."""
    edge = struct.pack("<I", side - 1)[:3]
    frame = b"\0" * 6 + edge + edge + struct.pack("<I", 100)[:3] + b"\0" + image
    head = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + edge + edge
    animation = b"ANIM" + struct.pack("<I", 6) + b"\0" * 6
    return riff(head + animation + (b"ANMF" + struct.pack("<I", len(frame)) + frame) * frames)
