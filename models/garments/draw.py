"""Drawings of garments by code: labelled, deterministic by seed, no downloads.

A drawing is made at four times its size as three flat maps (cloth colour, tone, silhouette), averaged down, then lit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from models.garments.catalogue import (
    BACKGROUNDS,
    CLOTHS,
    HELD_OUT,
    PRINTS,
    RGB,
    TRAINED_PAIRS,
    UNDER_WHITE,
    GarmentFacts,
)
from models.garments.shapes import SHAPES, Layer, Points, Shape, Uniform, ellipse

Picture: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]

_OVER: Final = 4  # supersampling factor
_PLAIN_SHARE: Final = 0.55
_TOLD_APART: Final = 115.0  # least RGB distance between a cloth's two colours


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture (size, size, 3) uint8, its silhouette (size, size) in 0..1, and what it shows."""

    picture: Picture
    silhouette: Floats
    facts: GarmentFacts


@dataclass(frozen=True, slots=True)
class Streams:
    """Sources of chance of one drawing. Drawings from equal streams differ only where their facts do.

    Attributes:
        pose: Of where the garment stands.
        cut: Of its outline, and of its print after that.
        shade: Of how its colours stray from the catalogue's.
        light: Of the light on it.
        ground: Of how the ground strays from the catalogue's.
    """

    pose: np.random.Generator
    cut: np.random.Generator
    shade: np.random.Generator
    light: np.random.Generator
    ground: np.random.Generator

    @classmethod
    def seeded(cls, seed: int) -> Streams:
        """Return streams that do not depend on each other, so that one thing can change and the others stay."""
        return cls(*(np.random.default_rng(part) for part in np.random.SeedSequence(seed).spawn(5)))


def uniform(rng: np.random.Generator) -> Uniform:
    """Return the draw of shapes and light: a number between two bounds."""

    def u(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    return u


@dataclass(frozen=True, slots=True)
class _Pose:
    """A similarity transform from garment units (-1..1) to pixels of the supersampled canvas."""

    angle: float
    scale: float
    dx: float
    dy: float
    pixels: int

    def place(self, points: Points) -> list[tuple[float, float]]:
        p = points
        co, si = math.cos(self.angle) * self.scale, math.sin(self.angle) * self.scale
        x = p[:, 0] * co - p[:, 1] * si + self.dx
        y = p[:, 0] * si + p[:, 1] * co + self.dy
        return [
            ((a + 1) * self.pixels / 2, (b + 1) * self.pixels / 2) for a, b in zip(x.tolist(), y.tolist(), strict=True)
        ]

    def width(self, width: float) -> int:
        return max(1, round(width * self.scale * self.pixels / 2))


def second_colours(garment: str, colour: str) -> list[str]:
    """Colours a print may have on this cloth: easily told apart, and never the other half of a held-out pair."""
    base = np.array(CLOTHS[colour], dtype=np.float64)
    far = [c for c, rgb in CLOTHS.items() if float(np.linalg.norm(base - np.array(rgb))) > _TOLD_APART]
    return [c for c in far if (garment, c) not in HELD_OUT]


def choose(rng: np.random.Generator, pairs: tuple[tuple[str, str], ...] = TRAINED_PAIRS) -> GarmentFacts:
    """Draw the facts of one training picture: pairs evenly, a little over half of them plain."""
    garment, colour = pairs[int(rng.integers(len(pairs)))]
    grounds = UNDER_WHITE if colour == "white" else tuple(BACKGROUNDS)
    ground = grounds[int(rng.integers(len(grounds)))]
    if rng.random() < _PLAIN_SHARE:
        return GarmentFacts(garment, colour, background=ground)
    seconds = second_colours(garment, colour)
    # White is what people ask for most in a print, so it comes up twice as often as any other.
    seconds += ["white"] * ("white" in seconds)
    second = seconds[int(rng.integers(len(seconds)))]
    if second == "white" and ground == "white":
        ground = "light grey"  # else white stripes would cut pieces out of the silhouette
    return GarmentFacts(garment, colour, PRINTS[1 + int(rng.integers(len(PRINTS) - 1))], second, ground)


def _print_shapes(facts: GarmentFacts, u: Uniform) -> list[Layer]:
    """Stripes, zigzags and dots in garment units; the print covers clearly less than half of the cloth."""
    layers: list[Layer] = []
    if facts.print == "stripes":
        # Level on most garments, upright on some: a print that starts anywhere at any angle is learnt far more slowly.
        period, upright, start = u(0.32, 0.38), u(0, 1) < 0.2, u(0, 0.1)
        for k in range(-5, 6):
            path = np.array([(-2.0, k * period + start), (2.0, k * period + start)])
            layers.append(Layer("stroke", path[:, ::-1] if upright else path, width=period * 0.42))
    elif facts.print == "zigzags":
        period, step, start = u(0.38, 0.44), u(0.18, 0.21), u(0, 0.1)
        for k in range(-4, 5):
            path = np.array([(i * step, k * period + start + (0.1 if i % 2 else -0.1)) for i in range(-7, 8)])
            layers.append(Layer("stroke", path, width=0.115))
    elif facts.print == "dots":
        step, radius, sx, sy = u(0.3, 0.35), u(0.085, 0.1), u(0, 0.1), u(0, 0.1)
        for j in range(-4, 5):
            centres = [((i + 0.5 * (j % 2)) * step + sx, j * step * 0.9 + sy) for i in range(-4, 5)]
            layers += [Layer("tone", ellipse(x, y, radius, radius, 14)) for x, y in centres]
    return layers


def _paint(
    facts: GarmentFacts, shape_of: Shape, rng: np.random.Generator, pose: _Pose, u: Uniform
) -> tuple[Image.Image, Image.Image, Image.Image, RGB]:
    """Cloth colours (RGB), tones (L, 128 is neutral) and silhouette (L), supersampled, and the base colour."""
    n = pose.pixels

    def near(name: str) -> RGB:
        r, g, b = (
            np.clip(np.array(CLOTHS[name], dtype=np.float64) + rng.normal(0, 4, 3), 8, 250).round().astype(int).tolist()
        )
        return (r, g, b)

    base = near(facts.colour)
    cloth, tone, shape = Image.new("RGB", (n, n), base), Image.new("L", (n, n), 128), Image.new("L", (n, n), 0)
    on_tone, on_shape = ImageDraw.Draw(tone), ImageDraw.Draw(shape)
    for layer in shape_of(u):
        points = pose.place(layer.points)
        shade = round(128 * layer.tone) if layer.tone <= 1 else round(128 + 127 * (layer.tone - 1))
        if layer.kind == "cut":
            on_shape.polygon(points, fill=0)
        elif layer.kind == "stroke":
            on_tone.line(points, fill=shade, width=pose.width(layer.width), joint="curve")
        else:
            on_tone.polygon(points, fill=shade)
            if layer.kind == "cloth":
                on_shape.polygon(points, fill=255)
    if facts.second:
        ink, on_cloth = near(facts.second), ImageDraw.Draw(cloth)
        if facts.print == "two colours":
            # The lower part changes colour where 60 to 66 % of the cloth lies above, whatever the garment's cut.
            rows = np.asarray(shape, dtype=np.float32).sum(axis=1).cumsum()
            line = int(np.searchsorted(rows, rows[-1] * u(0.6, 0.66)))
            on_cloth.rectangle((0, line, n, n), fill=ink)
        for layer in _print_shapes(facts, u):
            points = pose.place(layer.points)
            if layer.kind == "stroke":
                on_cloth.line(points, fill=ink, width=pose.width(layer.width), joint="curve")
            else:
                on_cloth.polygon(points, fill=ink)
    return cloth, tone, shape, base


def _light(size: int, shape: Floats, u: Uniform) -> Floats:
    """Brightness of the cloth: light from one side, soft folds, a darker rim."""
    yy, xx = np.mgrid[0:size, 0:size].astype(np.float32) / size * 2 - 1
    side, lean, count = u(0, 2 * math.pi), u(-0.5, 0.5), u(5, 9)
    light = 1 + 0.08 * (xx * math.cos(side) + yy * math.sin(side))
    light += u(0.01, 0.05) * np.sin(count * (xx * math.cos(lean) + yy * math.sin(lean)) + u(0, 6.3))
    blurred = Image.fromarray((shape * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(size / 40))
    inside = np.clip((np.asarray(blurred, dtype=np.float32) / 255 - 0.45) / 0.45, 0, 1)
    return np.asarray(light * (0.76 + 0.24 * inside), dtype=np.float32)


def draw(facts: GarmentFacts, rng: np.random.Generator, size: int = 64) -> Drawing:
    """Draw one garment. The same facts and generator state give the same picture on every machine.

    Args:
        facts: What to show.
        rng: Source of cut, pose, light and shades.
        size: Side of the picture in pixels.
    """
    return draw_from(facts, Streams(rng, rng, rng, rng, rng), size)


def draw_from(facts: GarmentFacts, streams: Streams, size: int = 64, shape_of: Shape | None = None) -> Drawing:
    """Draw one garment from streams, in its usual shape or another one.

    Args:
        facts: What to show.
        streams: Sources of cut, pose, light and shades.
        size: Side of the picture in pixels.
        shape_of: Outline instead of the garment's own.
    """
    u = uniform(streams.pose)
    pose = _Pose(math.radians(u(-6, 6)), u(0.88, 1.0), u(-0.05, 0.05), u(-0.05, 0.05), size * _OVER)
    shape_of = shape_of or SHAPES[facts.garment]
    cloth, tone, shape, base = _paint(facts, shape_of, streams.shade, pose, uniform(streams.cut))
    box = (size, size)
    shape_map: Floats = np.asarray(shape.resize(box, Image.Resampling.BOX), dtype=np.float32) / np.float32(255)
    tone_map = np.asarray(tone.resize(box, Image.Resampling.BOX), dtype=np.float32)[..., None]
    colour = np.asarray(cloth.resize(box, Image.Resampling.BOX), dtype=np.float32)
    light = _light(size, shape_map, uniform(streams.light))[..., None]
    dark = np.minimum(1, tone_map / 128)
    pale = np.maximum(0, (tone_map - 128) / 127)
    if max(base) < 70:
        # On near-black cloth a darker line is invisible: seams and folds are drawn lighter there instead.
        colour = colour + 90 * (1 - dark) * (colour < 90)
        dark = np.maximum(dark, 0.9)
    colour = colour * dark
    colour = (colour + (255 - colour) * pale) * light
    ground = np.array(BACKGROUNDS[facts.background], dtype=np.float32) + streams.ground.normal(0, 1.5, 3).astype(
        np.float32
    )
    mixed = ground * (1 - shape_map[..., None]) + np.clip(colour, 0, 255) * shape_map[..., None]
    return Drawing(np.clip(mixed + 0.5, 0, 255).astype(np.uint8), shape_map, facts)


def draw_many(seed: int, count: int, size: int) -> tuple[Picture, list[GarmentFacts]]:
    """Draw `count` training pictures from one seed: (count, size, size, 3) uint8 and their facts."""
    rng = np.random.default_rng(seed)
    pictures = np.zeros((count, size, size, 3), np.uint8)
    facts: list[GarmentFacts] = []
    for i in range(count):
        made = draw(choose(rng), rng, size)
        pictures[i] = made.picture
        facts.append(made.facts)
    return pictures, facts


def contact_sheet(pictures: list[Picture], columns: int, zoom: int = 1) -> Image.Image:
    """Lay pictures of one size out on a grey grid, left to right, top to bottom."""
    h, w = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (h + 2), columns * (w + 2), 3), 90, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = i // columns * (h + 2), i % columns * (w + 2)
        sheet[y : y + h, x : x + w] = picture
    image = Image.fromarray(sheet)
    return image if zoom == 1 else image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
