"""Describe a picture in a few words: who or what it shows, in which colours, of which shape, on which ground.

Nothing here is learned but the networks that find people and outlines: colours are the nearest of thirteen in CIELAB,
the shape is the drawn silhouette that overlaps the outline most.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modelkit.background import background_colour
from modelkit.vision import BodyPose, Subject
from models.garments.catalogue import GARMENTS, GarmentFacts
from models.garments.draw import draw
from models.garments.ruler import boxed
from services.training.trainer.dataset.buckets import Box

Mask = NDArray[np.bool_]
Labs = NDArray[np.float32]

COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (200, 30, 40), "orange": (240, 130, 30), "yellow": (245, 215, 50), "green": (50, 140, 65),
    "blue": (45, 95, 200), "navy": (25, 35, 80), "purple": (120, 55, 160), "pink": (245, 140, 180),
    "brown": (115, 75, 45), "beige": (215, 195, 160), "grey": (135, 135, 138), "black": (25, 25, 28),
    "white": (246, 246, 244),
}  # fmt: skip
"""Names that colours are given, and what they look like in sRGB."""

_SIDE: Final = 256
# Light and shade change how light a cloth is more than which colour it has.
_LIGHTNESS: Final = 0.6
_SECOND: Final = 0.18  # share of the cloth from which a second colour is told
_LEAST_OVERLAP: Final = 0.72
_TEMPLATES: Final = 24
_PLURALS: Final = frozenset({"trousers"})
_SHOULDERS, _HIPS, _KNEES, _ANKLES = [11, 12], [23, 24], [25, 26], [27, 28]
_SEEN: Final = 0.5
# A ground is plain where this share of it lies within that distance of its median in CIELAB.
_PLAIN_SHARE, _PLAIN_SPREAD = 0.8, 12.0


class DescriberEyes(Protocol):
    """Finds what a picture is about (`seeing.PictureEyes`)."""

    def subject(self, image: Image.Image) -> Subject | None:
        """Find the subject: a person, or a thing on a plain background."""
        ...

    def pose(self, image: Image.Image) -> BodyPose | None:
        """Find a person's pose."""
        ...

    def outline(self, image: Image.Image) -> Mask | None:
        """Return where the subject is; None where nothing stands out."""
        ...

    def box(self, image: Image.Image, focus: str) -> Box | None:
        """Return the box of the largest face, where `focus` is `face`; None where there is none."""
        ...


def describe(image: Image.Image, eyes: DescriberEyes) -> str:
    """Return what an RGB picture shows, such as `a red and white dress on a white background`.

    Args:
        image: RGB.
        eyes: Finds people and outlines.
    """
    small = image.copy()
    small.thumbnail((_SIDE * 2, _SIDE * 2), Image.Resampling.LANCZOS)
    subject = eyes.subject(small)
    mask = subject.mask if subject is not None else eyes.outline(small)
    ground = _ground(small, mask)
    if subject is not None and subject.kind == "person":
        pose = eyes.pose(small)
        stands = pose is not None and pose.seen[_SHOULDERS].min() >= _SEEN
        # The network for bodies takes a shirt that nobody wears for one.
        if eyes.box(small, "face") is not None or (stands and silhouette(subject.mask) is None):
            return f"{_person(small, pose if stands else None)}{ground}"
    if mask is None:
        return f"a picture{ground}"
    colours = cloth_colours(small, mask)
    noun = silhouette(mask) or "item"
    told = " and ".join(colours)
    article = "" if noun in _PLURALS else f"{_article(told)} "
    return f"{article}{told} {noun}{ground}"


def cloth_colours(image: Image.Image, mask: Mask) -> list[str]:
    """Return the one or two colours of most of what a mask marks, the larger share first."""
    inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    chosen = inner if inner.sum() >= 12 else mask
    votes = _nearest(np.asarray(image.convert("RGB"), np.uint8)[chosen])
    shares = np.bincount(votes, minlength=len(COLOURS)) / max(1, len(votes))
    order = np.argsort(-shares, kind="stable")
    names = list(COLOURS)
    return [names[int(place)] for rank, place in enumerate(order[:2]) if rank == 0 or shares[place] >= _SECOND]


def silhouette(mask: Mask) -> str | None:
    """Return which garment an outline is; None where none of those that are known overlaps enough."""
    bank, owners = _templates()
    box = boxed(mask)
    overlaps = (bank & box).sum((1, 2)) / np.maximum(1, (bank | box).sum((1, 2)))
    best = int(overlaps.argmax())
    return owners[best] if overlaps[best] >= _LEAST_OVERLAP else None


@lru_cache(maxsize=1)
def _templates() -> tuple[Mask, list[str]]:
    lots = np.random.default_rng(777)
    masks: list[Mask] = []
    owners: list[str] = []
    for garment in GARMENTS:
        for _ in range(_TEMPLATES):
            masks.append(boxed(draw(GarmentFacts(garment, "black"), lots, 64).silhouette > 0.5))
            owners.append(garment)
    return np.stack(masks), owners


def _person(image: Image.Image, pose: BodyPose | None) -> str:
    if pose is None:
        return "a close-up of a person"
    hips_seen = pose.seen[_HIPS].min() >= _SEEN and pose.points[_HIPS, 1].max() < image.height
    knees_seen = pose.seen[_KNEES].min() >= _SEEN and pose.points[_KNEES, 1].max() < image.height
    ankles_seen = pose.seen[_ANKLES].min() >= _SEEN and pose.points[_ANKLES, 1].max() < image.height
    worn = []
    if hips_seen:
        worn.append((_between(image, pose, _SHOULDERS, _HIPS), "top"))
    if hips_seen and knees_seen:
        worn.append((_between(image, pose, _HIPS, _KNEES), "bottom"))
    told = [f"{_article(colour)} {colour} {part}" for mask, part in worn for colour in _main(image, mask)]
    if ankles_seen:
        framing = "a full body picture"
    else:
        framing = "a three quarter picture" if knees_seen else "an upper body picture"
    return f"{framing} of a person{' in ' + ' and '.join(told) if told else ''}"


def _main(image: Image.Image, mask: Mask) -> list[str]:
    return cloth_colours(image, mask)[:1] if mask.any() else []


def _between(image: Image.Image, pose: BodyPose, upper: list[int], lower: list[int]) -> Mask:
    """Return what lies between two pairs of joints: cloth, and hardly any skin or background."""
    mask = np.zeros((image.height, image.width), np.uint8)
    corners = np.array([pose.points[upper[0]], pose.points[upper[1]], pose.points[lower[1]], pose.points[lower[0]]])
    cv2.fillConvexPoly(mask, cv2.convexHull(corners.round().astype(np.int32)), 1)
    return mask.astype(bool)


def _ground(image: Image.Image, mask: Mask | None) -> str:
    """Return ` on a white background`, or nothing where the background is not plain."""
    pixels = np.asarray(image.convert("RGB"), np.uint8)
    free = np.ones(pixels.shape[:2], bool) if mask is None else cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))) == 0
    if free.sum() < 12:
        return ""
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[free]
    middle = np.median(lab, axis=0)
    if float(np.quantile(np.linalg.norm(lab - middle, axis=1), _PLAIN_SHARE)) > _PLAIN_SPREAD:
        return ""
    colour = background_colour(pixels, None if mask is None else mask.astype(np.float32))
    if colour is None:
        return ""
    (vote,) = _votes(np.array([colour], np.float32))
    name = list(COLOURS)[vote]
    return f" on {_article(name)} {name} background"


def _nearest(pixels: NDArray[np.uint8]) -> NDArray[np.intp]:
    return _votes(cv2.cvtColor(pixels[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0])


def _votes(labs: Labs) -> NDArray[np.intp]:
    weights = np.array([_LIGHTNESS, 1, 1], np.float32)
    references = cv2.cvtColor(np.array([list(COLOURS.values())], np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    distances = np.linalg.norm((labs[:, None] - references[None]) * weights, axis=-1)
    return np.asarray(distances.argmin(1), np.intp)


def _article(words: str) -> str:
    return "an" if words[:1] in "aeiou" else "a"
