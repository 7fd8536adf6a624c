"""What the model knows: garments, colours, prints, backgrounds, and the pairs that are held out of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

RGB: TypeAlias = tuple[int, int, int]

GARMENTS: Final = (
    "dress",
    "t-shirt",
    "trousers",
    "skirt",
    "jacket",
    "coat",
    "sneaker",
    "boot",
    "hat",
    "bag",
)

# The ten measured colours. They lie far enough apart in CIELAB for a ruler to tell them without being taught.
COLOURS: Final[dict[str, RGB]] = {
    "red": (208, 32, 40),
    "orange": (244, 130, 22),
    "yellow": (248, 214, 40),
    "green": (44, 150, 64),
    "blue": (36, 84, 204),
    "purple": (126, 52, 168),
    "pink": (248, 134, 178),
    "brown": (120, 74, 40),
    "grey": (132, 135, 140),
    "black": (32, 32, 37),
}
# White cloth on a light ground has no silhouette a plain ruler can find: it is taught, but not measured.
CLOTHS: Final[dict[str, RGB]] = {**COLOURS, "white": (246, 246, 244)}

BACKGROUNDS: Final[dict[str, RGB]] = {
    "white": (251, 251, 251),
    "cream": (248, 240, 220),
    "light grey": (220, 221, 225),
    "light blue": (212, 229, 245),
}
# Grounds dark enough for white cloth to stand out from.
UNDER_WHITE: Final = ("light grey", "light blue")

PRINTS: Final = ("plain", "stripes", "zigzags", "dots", "two colours")

# No picture and no prompt of these pairs is ever used in training. Every garment loses two colours at most.
HELD_OUT: Final[frozenset[tuple[str, str]]] = frozenset(
    {
        ("dress", "green"),
        ("dress", "brown"),
        ("t-shirt", "purple"),
        ("t-shirt", "orange"),
        ("trousers", "yellow"),
        ("trousers", "pink"),
        ("skirt", "blue"),
        ("skirt", "grey"),
        ("jacket", "purple"),
        ("coat", "orange"),
        ("sneaker", "brown"),
        ("sneaker", "pink"),
        ("boot", "green"),
        ("hat", "black"),
        ("bag", "blue"),
        ("bag", "red"),
    }
)

TRAINED_PAIRS: Final = tuple((g, c) for g in GARMENTS for c in CLOTHS if (g, c) not in HELD_OUT)
SEEN_PAIRS: Final = tuple((g, c) for g in GARMENTS for c in COLOURS if (g, c) not in HELD_OUT)
UNSEEN_PAIRS: Final = tuple((g, c) for g in GARMENTS for c in COLOURS if (g, c) in HELD_OUT)


@dataclass(frozen=True, slots=True)
class GarmentFacts:
    """What one drawing shows.

    Attributes:
        garment: One of GARMENTS.
        colour: The dominant colour of the cloth, one of CLOTHS.
        print: One of PRINTS.
        second: The print's own colour, one of CLOTHS, or "" where the cloth is plain.
        background: One of BACKGROUNDS.
    """

    garment: str
    colour: str
    print: str = "plain"
    second: str = ""
    background: str = "white"
