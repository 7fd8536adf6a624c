"""A contact sheet: pictures, clips and texts side by side, each with its title."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageDraw, ImageFont

CELL: Final = 300
_TITLE: Final = 34
_GAP: Final = 14
_CHECK: Final = 12
_INK, _PAPER, _FAULT = "#212529", "#ffffff", "#c92a2a"
_GREYS: Final = ("#dee2e6", "#f8f9fa")
_CLIPS: Final = frozenset({".mp4", ".webm", ".mov"})
_FRAMES: Final = 4


@dataclass(frozen=True, slots=True)
class Panel:
    """One cell.

    Attributes:
        title: Text above it.
        file: The picture, clip or text; None where it was not made.
    """

    title: str
    file: Path | None


def contact_sheet(panels: Sequence[Panel], columns: int = 4) -> Image.Image:
    """Return all panels on one sheet, row by row; what is transparent lies over a chequered ground."""
    rows = max(1, math.ceil(len(panels) / columns))
    height = CELL + _TITLE
    sheet = Image.new("RGB", (columns * (CELL + _GAP) + _GAP, rows * (height + _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, panel in enumerate(panels):
        x, y = _GAP + number % columns * (CELL + _GAP), _GAP + number // columns * (height + _GAP)
        draw.text((x, y + 6), panel.title, _INK, ImageFont.load_default(17))
        sheet.paste(_cell(panel.file), (x, y + _TITLE))
    return sheet


def _cell(file: Path | None) -> Image.Image:
    if file is None:
        return _text("not made", _FAULT)
    if file.suffix in {".json", ".txt"}:
        return _text(file.read_text(encoding="utf-8"), _INK)
    if file.suffix in _CLIPS:
        return _frames(file)
    with Image.open(file) as image:
        return _fitted(image, CELL)


def _text(text: str, colour: str) -> Image.Image:
    cell = Image.new("RGB", (CELL, CELL), _GREYS[1])
    lines = "\n".join(line for part in text.splitlines() for line in textwrap.wrap(part, 32))
    ImageDraw.Draw(cell).multiline_text((12, 12), lines, colour, ImageFont.load_default(16), spacing=6)
    return cell


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """Return a square with the whole picture in its middle."""
    shown = image.convert("RGBA")
    scale = side / max(shown.size)
    shown = shown.resize([max(1, round(length * scale)) for length in shown.size], Image.Resampling.LANCZOS)
    ground = _chequered(shown.size)
    ground.paste(shown, (0, 0), shown)
    cell = Image.new("RGB", (side, side), _GREYS[1])
    cell.paste(ground, ((side - shown.width) // 2, (side - shown.height) // 2))
    return cell


def _chequered(size: tuple[int, int]) -> Image.Image:
    tile = Image.new("RGB", (2 * _CHECK, 2 * _CHECK), _GREYS[0])
    for corner in ((0, 0), (_CHECK, _CHECK)):
        tile.paste(_PAPER, (*corner, corner[0] + _CHECK, corner[1] + _CHECK))
    ground = Image.new("RGB", size)
    for x in range(0, size[0], tile.width):
        for y in range(0, size[1], tile.height):
            ground.paste(tile, (x, y))
    return ground


def _frames(file: Path) -> Image.Image:
    """Return frames of a clip from its beginning to its end, in one cell."""
    import av  # noqa: PLC0415 -- large, and only for clips

    with av.open(str(file)) as opened:
        clip: Any = opened
        frames = [frame.to_image() for frame in clip.decode(video=0)]
    cell = Image.new("RGB", (CELL, CELL), _GREYS[1])
    half = CELL // 2
    for number in range(_FRAMES):
        shown = frames[round(number * (len(frames) - 1) / (_FRAMES - 1))]
        cell.paste(_fitted(shown, half - 2), (number % 2 * half, number // 2 * half))
    return cell
