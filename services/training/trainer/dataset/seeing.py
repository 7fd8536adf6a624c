"""What is seen in a picture, by the networks that the mesh ships: subjects, faces, garments, outlines.

Networks are loaded when the first picture needs them, and run on the processor.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modelkit.cutout import Cutout, packaged_cutout
from modelkit.garment import find_garment
from modelkit.vision import BodyPose, Subject, Vision
from services.training.trainer.dataset.buckets import Box

Kind = Literal["person", "garment"]

# Dots of a print score up to 0.69, the least of real faces 0.75.
_LEAST_FACE: Final = 0.75
# The small network: a mask or a description needs no hair.
_OUTLINES: Final = "u2netp"


class PictureEyes:
    """Finds subjects, faces, garments and outlines.

    Args:
        threads: Processor threads of a network; 0 leaves it to each library.
    """

    def __init__(self, threads: int = 0) -> None:
        self._threads = threads
        self._vision = Vision(threads)
        self._cutouts: dict[str, Cutout] = {}

    def subject(self, image: Image.Image) -> Subject | None:
        """Find what a picture is about."""
        return self._vision.subject(image)

    def pose(self, image: Image.Image) -> BodyPose | None:
        """Find a person's pose."""
        return self._vision.pose(image)

    def box(self, image: Image.Image, focus: str) -> Box | None:
        """Return the box of a picture's subject, or of its largest face; None where there is none."""
        if focus == "face":
            faces = [face for face in self._vision.faces(image) if face.score >= _LEAST_FACE]
            return faces[0].box if faces else None
        mask = self.outline(image)
        if mask is None:
            return None
        down, across = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        return float(across[0]), float(down[0]), float(across[-1] + 1), float(down[-1] + 1)

    def outline(self, image: Image.Image) -> NDArray[np.bool_] | None:
        """Return where a picture's subject is, (height, width); None where nothing stands out."""
        subject = self.subject(image)
        if subject is not None:
            return subject.mask
        matte = self._cutout(_OUTLINES).matte(image)
        return None if matte is None else matte > 0.5

    def cut(self, image: Image.Image, network: str) -> Image.Image | None:
        """Return a picture with its subject alone, RGBA; None where nothing stands out."""
        return self._cutout(network).cut(image)

    def part(self, image: Image.Image, kind: Kind) -> NDArray[np.float32] | None:
        """Return where people are, or the garment is, (height, width), 0 to 1; None where there are none."""
        if kind == "person":
            share = self._vision.person(image)
            return None if share is None else _enlarged(share, image.size)
        found = find_garment(image, "", self, self._cutout(_OUTLINES))
        return None if found.mask.all() else found.mask.astype(np.float32)

    def _cutout(self, name: str) -> Cutout:
        if name not in self._cutouts:
            self._cutouts[name] = packaged_cutout(name, self._threads)
        return self._cutouts[name]


def _enlarged(share: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    levels = Image.fromarray((share * 255 + 0.5).astype(np.uint8))
    return np.asarray(levels.resize(size, Image.Resampling.BILINEAR), np.float32) / np.float32(255)
