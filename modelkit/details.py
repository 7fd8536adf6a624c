"""Bring details of a garment back from a reference: what is fine comes from there, colour and shading stay.

The reference is laid over the garment. The fine part of what it shows replaces the garment's own, where the two agree
at a coarse look. The result is compared with what was there, and made again with less of the reference until it passes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modelkit.alignment import Aligned, align, blurred
from modelkit.consistency import ConsistencyCheck, Scores
from modelkit.garment import Cutter, Garment, Looker, find_garment
from modelkit.patches import Blend, Floats, PixelBox, Pixels, feather, grown
from modelkit.pictures import over_white
from modelkit.redraw import Done, Draw, best_attempt, strength_of

# What is finer than this share of a tile's longer side is detail.
_DETAIL_SHARE = 1 / 48
_LEAST_DETAIL = 2.0
# Steps of the work before the first tile: a garment is found in each of the two pictures.
_FINDING = 2


@dataclass(frozen=True, slots=True)
class DetailSettings:
    """How details are brought back.

    Attributes:
        label: What the garment is; empty for all that is worn or shown.
        expand: Share by which the garment's box grows.
        split: Aspect from which an elongated box is worked on as two tiles.
        feather_px: Width of the soft edge in pixels.
        max_retries: Attempts beyond the first, for a tile that fails the check.
    """

    label: str = ""
    expand: float = 0.05
    split: float = 2.0
    feather_px: int = 32
    max_retries: int = 3


@dataclass(frozen=True, slots=True)
class TileOutcome:
    """What became of one tile.

    Attributes:
        box: The part of the picture that was worked on.
        attempts: Times it was made.
        scores: What the check measured of the attempt that was kept.
        detail: Mean strength of the detail before, of the reference, and after, in levels of luma.
    """

    box: PixelBox
    attempts: int
    scores: Scores
    detail: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class DetailedPicture:
    """A picture with its details brought back.

    Attributes:
        image: The picture, of the size and mode that it had.
        tiles: Its tiles.
        drafts: Every attempt beside the original and the reference, by a name for it; empty unless asked for.
    """

    image: Image.Image
    tiles: tuple[TileOutcome, ...]
    drafts: dict[str, Image.Image] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GarmentTile:
    """A tile whose details are to be brought back.

    Attributes:
        number: Which tile it is, from 0.
        before: The tile as it is, RGB.
        worn: (height, width), where it shows the garment.
        reference: The same part of the garment in the reference, RGB of any size.
        aligned: The reference laid over the tile.
        weights: (height, width), how much of the reference counts, 0 to 1.
    """

    number: int
    before: Pixels
    worn: NDArray[np.bool_]
    reference: Pixels
    aligned: Aligned
    weights: Floats


class DetailArtist(Protocol):
    """Redraws tiles: `ReferenceDetails`, or a service that edits pictures."""

    def detail(self, tile: GarmentTile) -> Draw:
        """Return what redraws a tile."""
        ...


class ReferenceDetails:
    """Redraws tiles with the fine part of what the reference shows, each attempt with less of it."""

    def detail(self, tile: GarmentTile) -> Draw:
        """Return what redraws a tile."""
        original = np.asarray(tile.before / 255, np.float32)
        change = _change(original, np.asarray(tile.aligned.pixels / 255, np.float32), tile.weights)

        def draw(attempt: int, done: Done) -> Floats:  # noqa: ARG001 -- there is nothing to wait for
            return _added(original, change * (tile.weights * strength_of(attempt))[..., None])

        return draw


class DetailTransfer:
    """Brings details back, the same for the same pictures, artist and settings.

    Args:
        looker: Finds people, their poses, and things on a plain background.
        cutter: Finds everything else.
        artist: Redraws the tiles.
        check: Judges them.
        settings: How to do it.
    """

    def __init__(
        self, looker: Looker, cutter: Cutter, artist: DetailArtist, check: ConsistencyCheck, settings: DetailSettings
    ) -> None:
        self._looker = looker
        self._cutter = cutter
        self._artist = artist
        self._check = check
        self._settings = settings

    def transfer(
        self, base: Image.Image, reference: Image.Image, done: Done, *, keep_drafts: bool = False
    ) -> DetailedPicture:
        """Bring details of a reference back. Pixels outside of the garment's box, and transparent ones, stay.

        Args:
            base: RGB or RGBA.
            reference: RGB or RGBA.
            done: Called with the share that is done, 0 to 1; may raise to stop.
            keep_drafts: Whether to keep every attempt.
        """
        settings = self._settings
        garment = find_garment(base, settings.label, self._looker, self._cutter)
        done(1 / (_FINDING + 2))
        shown = find_garment(reference, settings.label, self._looker, self._cutter)
        done(_FINDING / (_FINDING + 2))
        pixels, source = np.asarray(base.convert("RGB")), np.asarray(over_white(reference))
        height, width = pixels.shape[:2]
        pairs = list(
            zip(self._tiles(garment, width, height), self._tiles(shown, *reference.size, like=garment), strict=True)
        )
        visible = garment.mask & (np.asarray(base.getchannel("A")) > 0) if base.mode == "RGBA" else garment.mask
        blend, outcomes = Blend(pixels), []
        drafts: dict[str, Image.Image] = {}
        for index, (part, there) in enumerate(pairs):

            def share(within: float, index: int = index) -> None:
                done((_FINDING + 2 * (index + within) / len(pairs)) / (_FINDING + 2))

            box = part.within(width, height)
            before = np.ascontiguousarray(pixels[box.slices])
            aligned = align(source, there, before)
            share(0.5)
            weights = _weights(aligned, visible[box.slices], shown.mask)
            worn, shown_there = visible[box.slices], np.ascontiguousarray(source[there.slices])
            draw = self._artist.detail(GarmentTile(index, before, worn, shown_there, aligned, weights))

            def attempt(within: float, share: Done = share) -> None:
                share((1 + within) / 2)

            made = best_attempt(before, draw, self._check, settings.max_retries, attempt, keep_tried=keep_drafts)
            share(1.0)
            blend.lay(box, made.pixels, feather(part, width, height, settings.feather_px, "box"))
            detail = _details(before, aligned.pixels, made.pixels, weights)
            outcomes.append(TileOutcome(box, made.attempts, made.scores, detail))
            if keep_drafts:
                beside = (Image.fromarray(np.hstack([before, aligned.pixels, after])) for after in made.tried)
                drafts |= {f"tile-{index + 1}-attempt-{number}": draft for number, draft in enumerate(beside, 1)}
        result = Image.fromarray(blend.result())
        if base.mode == "RGBA":
            result.putalpha(base.getchannel("A"))
        return DetailedPicture(result, tuple(outcomes), drafts)

    def _tiles(self, garment: Garment, width: int, height: int, like: Garment | None = None) -> list[PixelBox]:
        """Return the parts to work on: the garment's box, or its halves; halves where another one's box is halved."""
        whole = grown(garment.box, self._settings.expand).within(width, height)
        left, top, right, bottom = (like or garment).box
        sides = (right - left, bottom - top)
        if max(sides) < self._settings.split * min(sides) or max(whole.width, whole.height) < 2:
            return [whole]
        if sides[0] > sides[1] and whole.width > 1:
            middle = (whole.left + whole.right) // 2
            return [
                PixelBox(whole.left, whole.top, middle, whole.bottom),
                PixelBox(middle, whole.top, whole.right, whole.bottom),
            ]
        middle = (whole.top + whole.bottom) // 2
        return [
            PixelBox(whole.left, whole.top, whole.right, middle),
            PixelBox(whole.left, middle, whole.right, whole.bottom),
        ]


def _change(original: Floats, reference: Floats, weights: Floats) -> Floats:
    """Return what to add in CIELAB so that fine detail is the reference's: (height, width, 3).

    What is coarse is measured on the garment alone: the backgrounds' difference would be a halo along its edge.
    """
    sigma = max(_LEAST_DETAIL, _DETAIL_SHARE * max(original.shape[:2]))
    new, old = (cv2.cvtColor(each, cv2.COLOR_RGB2LAB) for each in (reference, original))
    apart, counted = np.asarray(new - old, np.float32), weights + 1e-4
    coarse, total = blurred(apart * counted[..., None], sigma), blurred(counted, sigma)
    return np.asarray(apart - coarse / total[..., None], np.float32)


def _added(original: Floats, change: Floats) -> Floats:
    lab = np.asarray(cv2.cvtColor(original, cv2.COLOR_RGB2LAB) + change, np.float32)
    made = np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB).clip(0, 1), np.float32)
    # The way to CIELAB and back rounds: what is not changed stays to the bit.
    return np.where((change == 0).all(-1, keepdims=True), original, made)


def _weights(aligned: Aligned, worn: NDArray[np.bool_], shown: NDArray[np.bool_]) -> Floats:
    """Return how much of the reference counts: where both show the garment, and agree at a coarse look."""
    there = cv2.remap(
        shown.astype(np.float32), aligned.columns, aligned.rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    both = np.asarray(worn * there * aligned.inside, np.float32)
    # Along its edge the garment is mixed with its background, in either picture.
    sigma = max(1.0, _DETAIL_SHARE * max(both.shape) / 2)
    within = (2 * blurred(both, sigma) - 1).clip(0, 1)
    return np.asarray(within * both * aligned.agreement, np.float32)


def _details(before: Pixels, reference: Pixels, after: Floats, weights: Floats) -> tuple[float, float, float]:
    total = max(float(weights.sum()), 1e-6)
    made = np.asarray((after * 255).round().clip(0, 255), np.uint8)
    found = [float((strength_of_detail(each) * weights).sum()) / total for each in (before, reference, made)]
    return found[0], found[1], found[2]


def strength_of_detail(pixels: Pixels) -> Floats:
    """Return how much detail there is at each place: what a narrow blur takes away, in levels of luma."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.asarray(np.abs(grey - cv2.GaussianBlur(grey, (0, 0), _LEAST_DETAIL)), np.float32)
