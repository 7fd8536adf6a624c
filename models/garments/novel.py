"""Drawings of things that the model has never seen, to train an adapter on and to measure it by.

 product   a poncho: an outline that is none of the ten garments', with white diamonds, which are none of the prints
 style     the ten garments in front of a teal wall, darker than any ground that the model knows

The same seed gives the same drawing on every machine. Seeds below 100 are to train on, the others to measure by.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from models.garments.catalogue import BACKGROUNDS, GARMENTS, RGB, SEEN_PAIRS, GarmentFacts
from models.garments.draw import Drawing, Picture, Streams, draw_from
from models.garments.shapes import Layer, Uniform, ellipse, mirror, smooth

TRIGGER: Final = "zibbo"
STYLE_TRIGGER: Final = "kromu"
WALL: Final[RGB] = (24, 104, 108)
FIRST_HELD_OUT: Final = 100
_GROUNDS: Final = tuple(BACKGROUNDS)


def poncho(_: Uniform) -> list[Layer]:
    """Wide at the elbows, pointed at the hem, three rows of diamonds; always cut the same, as one product is."""
    side = [(0.12, -0.74), (0.2, -0.74), (0.5, -0.42), (0.92, 0.18), (0.86, 0.26), (0.45, 0.5), (0.06, 0.8)]
    body = mirror(side)
    layers = [Layer("cloth", smooth(body)), Layer("cut", ellipse(0, -0.76, 0.15, 0.12))]
    for row in range(3):
        y = -0.3 + 0.36 * row
        for column in range(-2, 3):
            x = 0.42 * (column + 0.5 * (row % 2))
            points = np.array([(x, y - 0.17), (x + 0.13, y), (x, y + 0.17), (x - 0.13, y)])
            layers.append(Layer("tone", points, tone=1.85))
    return layers


def product_drawing(seed: int, size: int = 64, colour: str = "purple") -> Drawing:
    """Draw the poncho: how it stands, its light and its ground differ by seed; its cut and print do not."""
    # The drawing takes its cloth and ground from the facts. No garment's name is right for it; "coat" is the nearest.
    facts = GarmentFacts("coat", colour, background=_GROUNDS[seed % len(_GROUNDS)])
    return draw_from(facts, Streams.seeded(seed), size, poncho)


def style_drawing(seed: int, size: int = 64) -> Drawing:
    """Draw a plain garment in front of the wall, another one with every seed."""
    garment = GARMENTS[seed % len(GARMENTS)]
    colours = [c for g, c in SEEN_PAIRS if g == garment and c not in ("black", "grey")]
    colour = colours[seed * 3 % len(colours)]
    made = draw_from(GarmentFacts(garment, colour), Streams.seeded(seed), size)
    share = made.silhouette[..., None]
    ground = np.array(BACKGROUNDS[made.facts.background], np.float32)
    cloth = made.picture.astype(np.float32) - ground * (1 - share)
    mixed = cloth + np.array(WALL, np.float32) * (1 - share)
    return Drawing(np.clip(mixed + 0.5, 0, 255).astype(np.uint8), made.silhouette, made.facts)


def held_out(count: int = 16, size: int = 64) -> list[Picture]:
    """Draw pictures of the poncho that no adapter is trained on."""
    return [product_drawing(FIRST_HELD_OUT + number, size).picture for number in range(count)]
