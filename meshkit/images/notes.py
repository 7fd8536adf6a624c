"""What a picture says of its own making: text in its PNG file, written by handlers and read by `atelier inspect`.

Two texts say the same: `atelier`, a JSON object, and `parameters`, the lines that other programs for pictures read
(the form of AUTOMATIC1111's web UI). A third, `Software`, names the program.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

SOFTWARE = "Atelier"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_JSON, _LINES = "atelier", "parameters"
# Settings that other programs know, by the name that they have there.
_KNOWN = {"steps": "Steps", "guidance_scale": "CFG scale", "strength": "Denoising strength"}


@dataclass(frozen=True, slots=True)
class PictureNotes:
    """How a picture was made.

    Attributes:
        task_type: Type of its task.
        prompt: Its prompt; None where its type has none.
        negative_prompt: What it was not to show.
        model: Name of the model that drew it.
        seed: Its seed.
        settings: Everything else that is needed to make it again: numbers, texts, lists of them.
    """

    task_type: str
    prompt: str | None = None
    negative_prompt: str | None = None
    model: str | None = None
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def png_info(notes: PictureNotes, size: tuple[int, int]) -> PngImagePlugin.PngInfo:
    """Return the texts for `Image.save(..., pnginfo=...)`.

    Args:
        notes: What to say.
        size: Width and height of the picture in pixels.
    """
    told = {
        "task_type": notes.task_type,
        "prompt": notes.prompt,
        "negative_prompt": notes.negative_prompt,
        "model": notes.model,
        "seed": notes.seed,
        "width": size[0],
        "height": size[1],
        **notes.settings,
    }
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", SOFTWARE)
    info.add_itxt(_JSON, json.dumps({name: value for name, value in told.items() if value is not None}))
    info.add_itxt(_LINES, _lines(notes, size))
    return info


def read_notes(path: Path) -> dict[str, Any] | None:
    """Return what a picture says of its making; None where it says nothing that is known here.

    A picture of another program that has `parameters` alone gives that text under this name.

    Raises:
        OSError: The file is no picture, or cannot be read.
    """
    with Image.open(path) as image:
        image.load()  # texts may stand behind the pixels
        texts = {name: str(value) for name, value in image.info.items() if name in (_JSON, _LINES)}
    try:
        told = json.loads(texts[_JSON])
    except (KeyError, ValueError):
        told = None
    if isinstance(told, dict):
        return told
    return {_LINES: texts[_LINES]} if _LINES in texts else None


def strip_notes(path: Path) -> None:
    """Take all texts out of a PNG file, and leave its pixels as they are; a file of another format stays.

    Format: https://www.w3.org/TR/png-3/#5Chunk-layout.
    """
    content = path.read_bytes()
    if not content.startswith(_SIGNATURE):
        return
    kept, place = [_SIGNATURE], len(_SIGNATURE)
    while place < len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")  # length, kind, content, checksum
        if content[place + 4 : place + 8] not in _TEXTS:
            kept.append(content[place:end])
        place = end
    path.write_bytes(b"".join(kept))


def _lines(notes: PictureNotes, size: tuple[int, int]) -> str:
    pairs = [(_KNOWN[name], notes.settings[name]) for name in _KNOWN if notes.settings.get(name) is not None]
    pairs += [("Seed", notes.seed), ("Size", f"{size[0]}x{size[1]}"), ("Model", notes.model)]
    last = ", ".join(f"{name}: {value}" for name, value in pairs if value is not None)
    negative = [f"Negative prompt: {notes.negative_prompt}"] if notes.negative_prompt else []
    return "\n".join([notes.prompt or "", *negative, last])
