"""HEIC pictures, and what can be wrong with them; `README.md` says what they show."""

import io
import struct
from pathlib import Path
from typing import Final

from PIL import Image

FOLDER: Final = Path(__file__).parent
_ASTRONAUT: Final = FOLDER.parent / "unit" / "modelkit" / "data" / "astronaut.jpg"


def heic(name: str = "portrait") -> bytes:
    """Return one of the pictures."""
    return (FOLDER / f"{name}.heic").read_bytes()


def original() -> Image.Image:
    """Return what they show, as it was before."""
    with Image.open(_ASTRONAUT) as image:
        return image.convert("RGB")


def claiming(width: int, height: int, name: str = "portrait") -> bytes:
    """Return a picture whose header gives it another size (`ispe`, ISO/IEC 23008-12, 6.5.3)."""
    data = bytearray(heic(name))
    place = data.find(b"ispe")
    while place >= 0:
        data[place + 8 : place + 16] = struct.pack(">II", width, height)
        place = data.find(b"ispe", place + 4)
    return bytes(data)


def shown(data: bytes) -> Image.Image:
    """Return the picture that a file holds."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image
