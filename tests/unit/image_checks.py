"""Judge images without a process: for tests of what uses the checks."""

from __future__ import annotations

import contextlib
import io

from atelier.mesh.v1.images_pb2 import ImageAnswer

from meshkit.images.checks import ImageChecks, Judgement
from meshkit.images.child import answer_to
from meshkit.images.limits import EVERYTHING, ImageGrant


class InProcessChecks(ImageChecks):
    """Asks the child's function in place of a child."""

    async def _answer(self, image: Judgement, grant: ImageGrant, *, large: bool) -> ImageAnswer:
        data = await image.source() if callable(image.source) else image.source
        file = io.BytesIO(data) if isinstance(data, bytes) else data
        with contextlib.nullcontext() if image.into is None else image.into.open("wb") as out:
            return answer_to(image.request(EVERYTHING), file, out)
