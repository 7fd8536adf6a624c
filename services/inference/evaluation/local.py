"""The evaluator of this installation: face, pose and person networks, and geometry.

It judges framing, view angle, people and collages. No network that ships judges anatomy or gender, and none describes:
these stay None.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from modelkit.errors import ModelError
from services.inference.evaluation.domain import EvaluatorFailedError, Findings, WantedShot

if TYPE_CHECKING:
    from PIL import Image

    from modelkit.vision import Vision


class NetworkEvaluator:
    """Judges by networks, which are loaded for the first picture.

    Args:
        threads: Processor threads of a network; 0 for as many as there are.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._vision: Vision | None = None
        self._loading = threading.Lock()

    async def judge(self, picture: Image.Image, wanted: WantedShot) -> Findings:  # noqa: ARG002 -- networks take no wishes
        """Judge a picture."""
        try:
            return await asyncio.to_thread(self._judged, picture)
        except ModelError as error:
            raise EvaluatorFailedError(error.message, fatal=True) from None

    def _judged(self, picture: Image.Image) -> Findings:
        from modelkit import shots  # noqa: PLC0415 -- OpenCV and LiteRT, for the first picture

        shot = shots.judge(picture, self._networks())
        return Findings(
            framing=shot.framing,
            view=shot.view,
            shot_confidence=shot.confidence,
            people=shot.people,
            presence_confidence=shot.presence,
            collage=shot.collage,
        )

    def _networks(self) -> Vision:
        from modelkit.vision import Vision  # noqa: PLC0415 -- as above

        with self._loading:
            if self._vision is None:
                self._vision = Vision(self._threads)
            return self._vision
