"""SARTIQ_ULTIMATE_FACE_FIXER over a provider that edits pictures (`ATELIER_ULTIMATE_EDITOR`).

Faces are found here, by the network that ships: `face_prompt` has no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_SARTIQ_ULTIMATE_FACE_FIXER, TASK_TYPE_FACE_ENHANCER, TaskType
from atelier.tasks.v1.task_pb2 import CreateTask, Task

from meshkit.worker.handlers import CallContext, CallHandler, InputRef, Output
from services.inference.providers.ultimate import EditedPicture, EditRequest, PictureEditor, open_editor
from services.inference.tasktypes.checks import check_of
from services.inference.tasktypes.face_enhancer import FaceEnhancerHandler, face_settings, faces_enhanced

if TYPE_CHECKING:
    from PIL import Image

    from modelkit.vision import Vision
    from services.inference.providers.kit import ProviderKit

_PROMPT = (
    "Redraw this face sharp and detailed: the same person, with the same features, expression, gaze, skin, hair and "
    "light, exactly where and as they are."
)


class EditedFaceHandler:
    """Restores the faces of FACE_ENHANCER tasks' pictures.

    Args:
        editor: Redraws the faces.
    """

    def __init__(self, editor: PictureEditor) -> None:
        self._editor = editor

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the picture."""
        return FaceEnhancerHandler().inputs(spec, task)

    async def run(self, context: CallContext) -> Output:
        """Restore the faces."""
        picture = EditedPicture(context, self._editor)
        return await picture.run(lambda: _restore(context, picture))


def handlers(kit: ProviderKit) -> Mapping[TaskType.ValueType, CallHandler]:
    """Return the handler of the one type that the pipeline executes.

    Raises:
        ValueError: The device executes it, or there is no account at who redraws.
    """
    return {
        TASK_TYPE_FACE_ENHANCER: EditedFaceHandler(
            open_editor(kit, PROVIDER_TYPE_SARTIQ_ULTIMATE_FACE_FIXER, TASK_TYPE_FACE_ENHANCER)
        )
    }


def ask_for_faces(picture: EditedPicture, words: str) -> Callable[[str, Sequence[Image.Image], int], Image.Image]:
    """Return what has faces redrawn.

    Args:
        picture: The task's picture.
        words: What the task says of them.
    """
    prompt = f"{_PROMPT} {words}" if words else _PROMPT
    return lambda operation, pictures, side: picture.edited(EditRequest(operation, prompt, pictures, side))


@cache
def face_finder() -> Vision:
    """Return the networks that find faces and people; the worker's own, shared by all tasks."""
    from modelkit.vision import Vision  # noqa: PLC0415 -- OpenCV and LiteRT, for the first task

    return Vision(1)


def _restore(context: CallContext, picture: EditedPicture) -> Output:
    from modelkit.edited import EditedFaces  # noqa: PLC0415 -- OpenCV, for the first task

    check = check_of(face_settings(context.spec, context.task), {})
    artist = EditedFaces(ask_for_faces(picture, ""))
    return faces_enhanced(context, face_finder(), artist, check, picture.done, model=picture.model)
