"""Draw a laid out workflow as SVG, or as PNG by Pillow; both look the same."""

import io
import itertools
from collections.abc import Iterator
from typing import Final
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw, ImageFont

from atelier_cli.diagram import BOX_HEIGHT, BOX_WIDTH, MARGIN, Diagram, Point, StepBox

# Fill and border by state; the empty state's for any state that a newer mesh adds.
_COLOURS: Final = {
    "": ("#ffffff", "#5f6b7a"),
    "PENDING": ("#f1f3f5", "#868e96"),
    "RUNNING": ("#fff3bf", "#e67700"),
    "COMPLETED": ("#d3f9d8", "#2b8a3e"),
    "FAILED": ("#ffe3e3", "#c92a2a"),
    "SKIPPED": ("#e7f5ff", "#1971c2"),
    "CANCELLED": ("#f3d9fa", "#862e9c"),
}
_INK: Final = "#212529"
_LINE: Final = "#868e96"
_BACKGROUND: Final = "#ffffff"
_RADIUS: Final = 8
_ARROW: Final = 7
_INSET: Final = 10
_TITLE_SIZE, _NAME_SIZE, _SMALL_SIZE = 16, 13, 11
_TITLE_Y: Final = MARGIN + 10
_NAME_Y, _SMALL_Y = 22, 40
# Two pixels per unit, and fewer where a picture would become too large to open.
_PNG_SCALE: Final = 2.0
_PNG_PIXELS: Final = 40_000_000
_CURVE_PIECES: Final = 24


def svg(layout: Diagram) -> str:
    """Return a picture as SVG 1.1 without scripts or fonts of its own."""
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{layout.width:g}" height="{layout.height:g}" '
            f'viewBox="0 0 {layout.width:g} {layout.height:g}" font-family="sans-serif" fill="{_INK}">'
        ),
        f'<rect width="100%" height="100%" fill="{_BACKGROUND}"/>',
        (
            f'<text x="{MARGIN}" y="{_TITLE_Y}" font-size="{_TITLE_SIZE}" font-weight="bold">'
            f"{_text(layout.title, layout.width - 2 * MARGIN, _TITLE_SIZE)}</text>"
        ),
    ]
    for line in layout.lines:
        parts.append(f'<path d="{_path(line)}" fill="none" stroke="{_LINE}" stroke-width="1.5"/>')
        tip = " ".join(f"{x:g},{y:g}" for x, y in _arrow(line[-1]))
        parts.append(f'<polygon points="{tip}" fill="{_LINE}"/>')
    parts += [_svg_box(box) for box in layout.boxes]
    return "\n".join([*parts, "</svg>", ""])


def png(layout: Diagram) -> bytes:
    """Return a picture as PNG."""
    scale = min(_PNG_SCALE, (_PNG_PIXELS / (layout.width * layout.height)) ** 0.5)
    image = Image.new("RGB", (round(layout.width * scale), round(layout.height * scale)), _BACKGROUND)
    draw = ImageDraw.Draw(image)

    def write(x: float, y: float, text: str, size: int, width: float) -> None:
        draw.text((x * scale, y * scale), _cut(text, width, size), _INK, ImageFont.load_default(size * scale), "ls")

    write(MARGIN, _TITLE_Y, layout.title, _TITLE_SIZE, layout.width - 2 * MARGIN)
    for line in layout.lines:
        points = [(x * scale, y * scale) for x, y in _along(line)]
        draw.line(points, _LINE, max(1, round(1.5 * scale)), joint="curve")
        draw.polygon([(x * scale, y * scale) for x, y in _arrow(line[-1])], _LINE)
    for box in layout.boxes:
        fill, border = _COLOURS.get(box.step.state, _COLOURS[""])
        corners = [box.x * scale, box.y * scale, (box.x + BOX_WIDTH) * scale, (box.y + BOX_HEIGHT) * scale]
        draw.rounded_rectangle(corners, _RADIUS * scale, fill, border, max(1, round(1.5 * scale)))
        write(box.x + _INSET, box.y + _NAME_Y, box.step.name, _NAME_SIZE, BOX_WIDTH - 2 * _INSET)
        write(box.x + _INSET, box.y + _SMALL_Y, _below(box), _SMALL_SIZE, BOX_WIDTH - 2 * _INSET)
    held = io.BytesIO()
    image.save(held, "PNG", optimize=True)
    return held.getvalue()


def _svg_box(box: StepBox) -> str:
    fill, border = _COLOURS.get(box.step.state, _COLOURS[""])
    room = BOX_WIDTH - 2 * _INSET
    return (
        f"<g><title>{_clean(box.step.name)}: {_clean(_below(box))}</title>"
        f'<rect x="{box.x:g}" y="{box.y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="{_RADIUS}" '
        f'fill="{fill}" stroke="{border}" stroke-width="1.5"/>'
        f'<text x="{box.x + _INSET:g}" y="{box.y + _NAME_Y:g}" font-size="{_NAME_SIZE}" font-weight="bold">'
        f"{_text(box.step.name, room, _NAME_SIZE)}</text>"
        f'<text x="{box.x + _INSET:g}" y="{box.y + _SMALL_Y:g}" font-size="{_SMALL_SIZE}">'
        f"{_text(_below(box), room, _SMALL_SIZE)}</text></g>"
    )


def _below(box: StepBox) -> str:
    return "  ".join(part for part in (box.step.task_type, box.step.state.lower()) if part)


def _cut(text: str, width: float, size: int) -> str:
    """Return a text that fits, cut with three dots where needed."""
    font = ImageFont.load_default(size)
    if font.getlength(text) <= width:
        return text
    kept = text
    while kept and font.getlength(f"{kept}...") > width:
        kept = kept[:-1]
    return f"{kept}..."


def _text(text: str, width: float, size: int) -> str:
    # Bold letters of other fonts are wider than those measured.
    return _clean(_cut(text, width * 0.92, size))


def _clean(text: str) -> str:
    """Return a text for XML, which has no control characters."""
    return escape("".join(sign if sign.isprintable() else " " for sign in text))


def _controls(left: Point, right: Point) -> tuple[Point, Point]:
    middle = (left[0] + right[0]) / 2
    return (middle, left[1]), (middle, right[1])


def _path(line: tuple[Point, ...]) -> str:
    parts = [f"M {line[0][0]:g} {line[0][1]:g}"]
    for left, right in itertools.pairwise(line):
        (ax, ay), (bx, by) = _controls(left, right)
        parts.append(f"C {ax:g} {ay:g} {bx:g} {by:g} {right[0]:g} {right[1]:g}")
    return " ".join(parts)


def _along(line: tuple[Point, ...]) -> Iterator[Point]:
    """Points of the same curve as `_path`, near enough to each other to be drawn straight."""
    yield line[0]
    for left, right in itertools.pairwise(line):
        a, b = _controls(left, right)
        for piece in range(1, _CURVE_PIECES + 1):
            t = piece / _CURVE_PIECES
            weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
            ends = (left, a, b, right)
            yield (
                sum(weight * end[0] for weight, end in zip(weights, ends, strict=True)),
                sum(weight * end[1] for weight, end in zip(weights, ends, strict=True)),
            )


def _arrow(tip: Point) -> list[Point]:
    x, y = tip
    return [(x, y), (x - _ARROW, y - _ARROW / 2), (x - _ARROW, y + _ARROW / 2)]
