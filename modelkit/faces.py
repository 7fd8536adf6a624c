"""Restore faces of a picture: find them, redraw each at the size that the network was trained for, check, put it back.

The network (Real-ESRGAN x4plus) draws faces well that are 64 to 160 pixels large, and four times larger. So a face is
brought to such a size, redrawn, and brought back. It must stay the same face: it is compared with what was there, and
drawn again with less freedom until it passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modelkit.consistency import ConsistencyCheck, Scores
from modelkit.patches import Blend, PixelBox, feather, grown, match_colour
from modelkit.vision import Face

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Done = Callable[[float], None]

_LEAST_SIDE, _FIRST_SIDE, _MOST_SIDE = 64, 128, 160
# Each attempt is drawn from a larger copy, and keeps more of the original.
_STRENGTHS = (1.0, 0.75, 0.5, 0.35, 0.25)
_LARGER = 1.15
# By how much the seed moves the size of the copy, which is all that there is to draw by lot.
_SPREAD = 0.04


class FaceFinder(Protocol):
    """Finds faces (`modelkit.vision.Vision`)."""

    def faces(self, image: Image.Image) -> Sequence[Face]:
        """Find all faces, the largest first."""
        ...


class Restorer(Protocol):
    """Redraws a picture four times as large (`modelkit.upscale.Upscaler`)."""

    def restore(self, image: Image.Image, step: Callable[[int, int], None] | None = None) -> Image.Image:
        """Redraw; `step` is called with (tiles done, tiles in all), and may raise to stop."""
        ...


@dataclass(frozen=True, slots=True)
class FaceSettings:
    """How faces are restored.

    Attributes:
        expand: Share by which a face's box grows before it is cut out (0.5: half as large again).
        feather_px: Width of the soft edge in pixels.
        max_retries: Attempts beyond the first, for a face that fails the check.
        strength: Share of the redrawn face in the first attempt's result, 0 to 1.
        seed: Draws the exact size at which the network sees each attempt.
    """

    expand: float = 0.5
    feather_px: int = 32
    max_retries: int = 3
    strength: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class FaceOutcome:
    """What became of one face.

    Attributes:
        box: The part of the picture that was redrawn.
        attempts: Times it was redrawn.
        scores: What the check measured of the attempt that was kept.
    """

    box: PixelBox
    attempts: int
    scores: Scores


@dataclass(frozen=True, slots=True)
class RestoredFaces:
    """A picture with its faces restored.

    Attributes:
        image: The picture, of the size and mode that it had.
        faces: Its faces, the largest first; empty where none was found, and the picture is as it was.
        drafts: Every attempt's face beside the original one, by a name for it; empty unless asked for.
    """

    image: Image.Image
    faces: tuple[FaceOutcome, ...]
    drafts: dict[str, Image.Image] = field(default_factory=dict)

    @property
    def worst(self) -> FaceOutcome | None:
        """The face that is the least like itself before."""
        return min(self.faces, key=lambda face: face.scores.margin, default=None)


class FaceRestoration:
    """Restores faces, the same for the same picture and settings.

    Args:
        finder: Finds them.
        restorer: Redraws them.
        check: Judges them.
        settings: How to do it.
    """

    def __init__(self, finder: FaceFinder, restorer: Restorer, check: ConsistencyCheck, settings: FaceSettings) -> None:
        self._finder = finder
        self._restorer = restorer
        self._check = check
        self._settings = settings

    def restore(self, image: Image.Image, done: Done, *, keep_drafts: bool = False) -> RestoredFaces:
        """Restore all faces of a picture. Pixels outside of the faces' boxes, and transparent ones, stay as they are.

        Args:
            image: RGB or RGBA.
            done: Called with the share that is done, 0 to 1, after every tile of the network; may raise to stop.
            keep_drafts: Whether to keep every attempt.
        """
        pixels = np.asarray(image.convert("RGB"))
        height, width = pixels.shape[:2]
        parts = [grown(face.box, self._settings.expand) for face in self._finder.faces(_shown(image))]
        parts = [part for part in parts if part.within(width, height).width and part.within(width, height).height]
        if not parts:
            return RestoredFaces(image, ())
        blend, outcomes = Blend(pixels), []
        drafts: dict[str, Image.Image] = {}
        visible = np.asarray(image.getchannel("A")) > 0 if image.mode == "RGBA" else np.ones((height, width), bool)
        for index, part in enumerate(parts):
            box = part.within(width, height)
            lots = np.random.default_rng((self._settings.seed, index))

            def share(within: float, index: int = index) -> None:
                done((index + within) / len(parts))

            scores, redrawn, tried = self._redraw(np.ascontiguousarray(pixels[box.slices]), lots, share)
            weights = feather(part, width, height, self._settings.feather_px, "ellipse") * visible[box.slices]
            blend.lay(box, redrawn, weights)
            outcomes.append(FaceOutcome(box, len(tried), scores))
            if keep_drafts:
                drafts |= {f"face-{index + 1}-attempt-{number}": draft for number, draft in enumerate(tried, 1)}
            share(1.0)
        made = Image.fromarray(blend.result())
        if image.mode == "RGBA":
            made.putalpha(image.getchannel("A"))
        return RestoredFaces(made, tuple(outcomes), drafts)

    def _redraw(
        self, before: Pixels, lots: np.random.Generator, done: Done
    ) -> tuple[Scores, Floats, list[Image.Image]]:
        """Redraw one face until it passes, or the attempts are used up; returns the best attempt, and all of them."""
        original = np.asarray(before / 255, np.float32)
        side = float(np.clip(max(before.shape[:2]), _LEAST_SIDE, _FIRST_SIDE))
        calls = self._settings.max_retries + 1
        best: tuple[Scores, Floats] | None = None
        tried: list[Image.Image] = []
        for attempt in range(calls):

            def tile(finished: int, total: int, attempt: int = attempt) -> None:
                done((attempt + finished / total) / calls)

            copy = int(np.clip(round(side * (1 + _SPREAD * lots.uniform(-1, 1))), _LEAST_SIDE, _MOST_SIDE))
            redrawn = match_colour(_redrawn(before, copy, self._restorer, tile), original)
            strength = self._settings.strength * _STRENGTHS[min(attempt, len(_STRENGTHS) - 1)]
            candidate = np.asarray(original + strength * (redrawn - original), np.float32)
            after = np.asarray((candidate * 255).round().clip(0, 255), np.uint8)
            scores = self._check.measure(before, after)
            tried.append(Image.fromarray(np.hstack([before, after])))
            if best is None or scores.margin > best[0].margin:
                best = scores, candidate
            if scores.passed:
                break
            side *= _LARGER
        assert best is not None  # there is at least one attempt
        return best[0], best[1], tried


def _shown(image: Image.Image) -> Image.Image:
    """Return the picture as it is seen, over grey: what lies hidden below transparency is no face."""
    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, (128, 128, 128, 255)), image).convert("RGB")


def _redrawn(part: Pixels, side: int, restorer: Restorer, step: Callable[[int, int], None]) -> Floats:
    """Redraw a part from a copy whose longer side is `side` pixels; what is finer than the result of that stays."""
    height, width = part.shape[:2]
    scale = side / max(height, width)
    copy = _resized(part, (max(1, round(width * scale)), max(1, round(height * scale))))
    made = np.asarray(restorer.restore(Image.fromarray(copy), step))
    redrawn = np.asarray(_resized(made, (width, height)) / 255, np.float32)
    if made.shape[1] < width:
        coarse = _resized(_resized(part, (made.shape[1], made.shape[0])), (width, height))
        redrawn += np.asarray(part - coarse.astype(np.float32), np.float32) / 255
    return redrawn


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    smaller = size[0] < pixels.shape[1]
    made = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    return np.asarray(made, np.uint8)
