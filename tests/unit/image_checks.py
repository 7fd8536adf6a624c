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
        async with contextlib.AsyncExitStack() as stack:
            file = io.BytesIO(data) if isinstance(data, bytes) else data
            if callable(image.source):
                stack.callback(file.close)
            out = None if image.into is None else stack.enter_context(image.into.open("wb"))
            return answer_to(image.request(EVERYTHING), file, out)
