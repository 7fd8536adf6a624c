"""Drawings of things that the model has never seen, to train an adapter on and to measure it by.

 product   a poncho: an outline that is none of the ten garments', with white diamonds, which are none of the prints
 style     the ten garments in black and white, on grey grounds

The same seed gives the same drawing on every machine. Seeds below 100 are to train on, the others to measure by.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from models.garments.catalogue import BACKGROUNDS, GARMENTS, SEEN_PAIRS, GarmentFacts
from models.garments.draw import Drawing, Picture, Streams, draw_from
from models.garments.shapes import Layer, Uniform, ellipse, mirror, smooth

TRIGGER: Final = "zibbo"
STYLE_TRIGGER: Final = "kromu"
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
    """Draw a plain garment without its colours, another garment with every seed."""
    garment = GARMENTS[seed % len(GARMENTS)]
    colours = [c for g, c in SEEN_PAIRS if g == garment and c not in ("black", "grey")]
    facts = GarmentFacts(garment, colours[seed * 3 % len(colours)], background=_GROUNDS[seed % len(_GROUNDS)])
    made = draw_from(facts, Streams.seeded(seed), size)
    return Drawing(grey(made.picture), made.silhouette, facts)


def grey(picture: Picture) -> Picture:
    """Take the colours out of a picture: every channel becomes its luma (ITU-R BT.601)."""
    luma = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.repeat(np.clip(luma + 0.5, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def held_out(count: int = 16, size: int = 64) -> list[Picture]:
    """Draw pictures of the poncho that no adapter is trained on."""
    return [product_drawing(FIRST_HELD_OUT + number, size).picture for number in range(count)]
