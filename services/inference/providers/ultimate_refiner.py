"""SARTIQ_ULTIMATE_REFINER over a provider that edits pictures (`ATELIER_ULTIMATE_EDITOR`).

The plain enlargement is Lanczos here, for this worker has no networks but that which finds faces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_SARTIQ_ULTIMATE_REFINER, TASK_TYPE_REFINE, TaskType
from atelier.tasks.v1.task_pb2 import CreateTask, Task

from meshkit.worker.handlers import CallContext, CallHandler, InputRef, Output
from services.inference.providers.ultimate import EditedPicture, EditRequest, PictureEditor, open_editor
from services.inference.providers.ultimate_face_fixer import ask_for_faces, face_finder
from services.inference.tasktypes.checks import check_of
from services.inference.tasktypes.refine import read_asked
from services.inference.tasktypes.ultimate_refiner import (
    RefinerParts,
    UltimateRefinerHandler,
    refined,
    refiner_settings,
    wants_faces,
)

if TYPE_CHECKING:
    from PIL import Image

    from services.inference.providers.kit import ProviderKit

_PROMPT = (
    "Redraw this part of a photo at a higher resolution: every shape, colour, texture, print, letter and face exactly "
    "where and as it is, with the fine detail that the larger picture can show."
)


class EditedRefinerHandler:
    """Refines REFINE tasks' pictures tile by tile.

    Args:
        editor: Redraws the tiles.
    """

    def __init__(self, editor: PictureEditor) -> None:
        self._editor = editor

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the picture."""
        return UltimateRefinerHandler().inputs(spec, task)

    async def run(self, context: CallContext) -> Output:
        """Refine the picture."""
        picture = EditedPicture(context, self._editor)
        return await picture.run(lambda: _refine(context, picture))


def handlers(kit: ProviderKit) -> Mapping[TaskType.ValueType, CallHandler]:
    """Return the handler of the one type that the pipeline executes.

    Raises:
        ValueError: The device executes it, or there is no account at who redraws.
    """
    return {
        TASK_TYPE_REFINE: EditedRefinerHandler(
            open_editor(kit, PROVIDER_TYPE_SARTIQ_ULTIMATE_REFINER, TASK_TYPE_REFINE)
        )
    }


def _refine(context: CallContext, picture: EditedPicture) -> Output:
    from modelkit.edited import EditedFaces, EditedTiles  # noqa: PLC0415 -- OpenCV, for the first task
    from modelkit.refiner import resampled  # noqa: PLC0415 -- as above

    settings, asked = refiner_settings(context.spec, context.task), read_asked(context.spec, context.task)

    def enlarge(image: Image.Image, width: int, height: int, step: Callable[[int, int], None]) -> Image.Image:
        made = resampled(image, width, height)
        step(1, 1)
        return made

    words = context.spec.refine.upscale_prompt
    prompt = f"{_PROMPT} What it shows: {words}" if words else _PROMPT
    face_words = context.spec.refine.face_detail_prompt
    parts = RefinerParts(
        enlarge=enlarge,
        tiles=EditedTiles(_ask_for_tiles(picture, prompt)),
        workers=settings.max_workers or settings.num_tiles,
        finder=face_finder() if wants_faces(settings, asked) else None,
        faces=EditedFaces(ask_for_faces(picture, face_words), asked.faces),
        check=check_of(settings, {}),
    )
    return refined(context, parts, picture.done)


def _ask_for_tiles(picture: EditedPicture, prompt: str) -> Callable[[str, Sequence[Image.Image], int], Image.Image]:
    return lambda operation, pictures, side: picture.edited(EditRequest(operation, prompt, pictures, side))
