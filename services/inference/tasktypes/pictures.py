"""Writes the pictures that tasks make, with what is needed to make them again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.struct_pb2 import Struct

from meshkit.images.notes import PictureNotes, png_info
from services.inference.tasktypes import members

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image


def wants_notes(config: Struct) -> bool:
    """Tell whether a task's pictures say how they were made; `config.metadata` set to false leaves it out.

    Raises:
        TaskFailed: The member is neither true nor false.
    """
    return members.switch(config, "metadata", default=True)


def save_png(image: Image.Image, path: Path, notes: PictureNotes | None) -> None:
    """Write a PNG.

    Args:
        image: The picture.
        path: Where to write it.
        notes: What it is to say of its making; None for nothing.
    """
    image.save(path, "PNG", pnginfo=None if notes is None else png_info(notes, image.size))
