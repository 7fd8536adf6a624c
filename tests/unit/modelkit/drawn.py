"""A shirt as a packshot, drawn: its print can be sharp or lost."""

from PIL import Image, ImageDraw

_SCALE = 4


def shirt(
    width: int = 200, height: int = 250, turn: float = 0, background: tuple[int, int, int] = (240, 238, 235)
) -> Image.Image:
    """Draw a blue shirt with stripes and a print, turned by some degrees."""
    image = Image.new("RGB", (width * _SCALE, height * _SCALE), background)
    draw = ImageDraw.Draw(image)

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * image.width, y * image.height) for x, y in points]

    outline = at((0.3, 0.2), (0.42, 0.15), (0.58, 0.15), (0.7, 0.2), (0.88, 0.42), (0.76, 0.5), (0.7, 0.42), (0.7, 0.9))
    draw.polygon(outline + at((0.3, 0.9), (0.3, 0.42), (0.24, 0.5), (0.12, 0.42)), fill=(40, 80, 160))
    for stripe in range(18):
        row = 0.24 + 0.036 * stripe
        draw.line(at((0.3, row), (0.7, row)), fill=(70, 120, 205), width=_SCALE)
    draw.ellipse(at((0.4, 0.35), (0.6, 0.51)), fill=(250, 220, 60))
    draw.line(at((0.42, 0.41), (0.58, 0.41)), fill=(20, 20, 20), width=2 * _SCALE)
    draw.line(at((0.45, 0.38), (0.55, 0.48)), fill=(20, 20, 20), width=2 * _SCALE)
    draw.line(at((0.42, 0.46), (0.58, 0.46)), fill=(200, 30, 30), width=2 * _SCALE)
    small = image.resize((width, height), Image.Resampling.LANCZOS)
    return small.rotate(turn, Image.Resampling.BICUBIC, fillcolor=background)


def soft(image: Image.Image, factor: int = 5) -> Image.Image:
    """Lose what is fine."""
    small = image.resize((image.width // factor, image.height // factor), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BICUBIC)
