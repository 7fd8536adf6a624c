"""Restore faces of a picture: find them, redraw each at the size that the network was trained for, check, put it back.

The network (Real-ESRGAN x4plus) draws faces well that are 64 to 160 pixels large, and four times larger. So a face is
brought to such a size, redrawn, and brought back. It must stay the same face: it is compared with what was there, and
drawn again with less freedom until it passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from modelkit.consistency import ConsistencyCheck, Scores
from modelkit.patches import Blend, Floats, PixelBox, Pixels, feather, grown, match_colour
from modelkit.redraw import Done, Draw, Restorer, best_attempt, drawn_by, fitting, resized, strength_of

if TYPE_CHECKING:
    from modelkit.vision import Face

_LEAST_SIDE, _FIRST_SIDE, _MOST_SIDE = 64, 128, 160
# Each attempt is drawn from a larger copy, and keeps more of the original.
_LARGER = 1.15
# By how much the seed moves the size of the copy, which is all that there is to draw by lot.
_SPREAD = 0.04


class FaceFinder(Protocol):
    """Finds faces (`modelkit.vision.Vision`)."""

    def faces(self, image: Image.Image) -> Sequence[Face]:
        """Find all faces, the largest first."""
        ...


class FaceArtist(Protocol):
    """Redraws faces: `NetworkFaces`, or a service that edits pictures."""

    def face(self, number: int, before: Pixels) -> Draw:
        """Return what redraws a face.

        Args:
            number: Which face it is, from 0.
            before: The face with its surroundings, RGB.
        """
        ...


@dataclass(frozen=True, slots=True)
class FaceSettings:
    """How faces are restored.

    Attributes:
        expand: Share by which a face's box grows before it is cut out (0.5: half as large again).
        feather_px: Width of the soft edge in pixels.
        max_retries: Attempts beyond the first, for a face that fails the check.
    """

    expand: float = 0.5
    feather_px: int = 32
    max_retries: int = 3


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
        artist: Redraws them.
        check: Judges them.
        settings: How to do it.
    """

    def __init__(self, finder: FaceFinder, artist: FaceArtist, check: ConsistencyCheck, settings: FaceSettings) -> None:
        self._finder = finder
        self._artist = artist
        self._check = check
        self._settings = settings

    def find(self, image: Image.Image) -> Sequence[Face]:
        """Find the faces of an RGB or RGBA picture as it is seen."""
        return self._finder.faces(_shown(image))

    def restore(
        self, image: Image.Image, done: Done, *, keep_drafts: bool = False, faces: Sequence[Face] | None = None
    ) -> RestoredFaces:
        """Restore all faces of a picture. Pixels outside of the faces' boxes, and transparent ones, stay as they are.

        Args:
            image: RGB or RGBA.
            done: Called with the share that is done, 0 to 1, after every tile of the network; may raise to stop.
            keep_drafts: Whether to keep every attempt.
            faces: Its faces, where they are known already.
        """
        pixels = np.asarray(image.convert("RGB"))
        height, width = pixels.shape[:2]
        found = self.find(image) if faces is None else faces
        parts = [grown(face.box, self._settings.expand) for face in found]
        parts = [part for part in parts if part.within(width, height).width and part.within(width, height).height]
        if not parts:
            return RestoredFaces(image, ())
        blend, outcomes = Blend(pixels), []
        drafts: dict[str, Image.Image] = {}
        visible = np.asarray(image.getchannel("A")) > 0 if image.mode == "RGBA" else np.ones((height, width), bool)
        for index, part in enumerate(parts):
            box = part.within(width, height)

            def share(within: float, index: int = index) -> None:
                done((index + within) / len(parts))

            before = np.ascontiguousarray(pixels[box.slices])
            draw = self._artist.face(index, before)
            made = best_attempt(before, draw, self._check, self._settings.max_retries, share, keep_tried=keep_drafts)
            weights = feather(part, width, height, self._settings.feather_px, "ellipse") * visible[box.slices]
            blend.lay(box, made.pixels, weights)
            outcomes.append(FaceOutcome(box, made.attempts, made.scores))
            if keep_drafts:
                beside = (Image.fromarray(np.hstack([before, after])) for after in made.tried)
                drafts |= {f"face-{index + 1}-attempt-{number}": draft for number, draft in enumerate(beside, 1)}
            share(1.0)
        result = Image.fromarray(blend.result())
        if image.mode == "RGBA":
            result.putalpha(image.getchannel("A"))
        return RestoredFaces(result, tuple(outcomes), drafts)


class NetworkFaces:
    """Has the photo network redraw faces, each attempt from a larger copy and with less freedom.

    Args:
        restorer: The network.
        strength: Share of the redrawn face in the first attempt's result, 0 to 1.
        seed: Draws the exact size at which the network sees each attempt.
    """

    def __init__(self, restorer: Restorer, strength: float = 1.0, seed: int = 0) -> None:
        self._restorer = restorer
        self._strength = strength
        self._seed = seed

    def face(self, number: int, before: Pixels) -> Draw:
        """Return what redraws a face."""
        original = np.asarray(before / 255, np.float32)
        first = float(np.clip(max(before.shape[:2]), _LEAST_SIDE, _FIRST_SIDE))
        lots = np.random.default_rng((self._seed, number))

        def draw(attempt: int, done: Done) -> Floats:
            side = first * _LARGER**attempt * (1 + _SPREAD * lots.uniform(-1, 1))
            longest = int(np.clip(round(side), _LEAST_SIDE, _MOST_SIDE))
            copy = resized(before, fitting(before.shape[1], before.shape[0], longest))
            redrawn = match_colour(drawn_by(self._restorer, copy, before, done), original)
            share = self._strength * strength_of(attempt)
            return np.asarray(original + share * (redrawn - original), np.float32)

        return draw


def _shown(image: Image.Image) -> Image.Image:
    """Return the picture as it is seen, over grey: what lies hidden below transparency is no face."""
    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, (128, 128, 128, 255)), image).convert("RGB")
