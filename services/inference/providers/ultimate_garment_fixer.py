"""SARTIQ_ULTIMATE_GARMENT_FIXER over a provider that edits pictures (`ATELIER_ULTIMATE_EDITOR`).

Garments are found by the person networks and plain backgrounds; where neither helps, all of the picture is the garment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_SARTIQ_ULTIMATE_GARMENT_FIXER, TASK_TYPE_DETAIL_ENHANCER, TaskType
from atelier.tasks.v1.task_pb2 import CreateTask, Task

from meshkit.worker.handlers import CallContext, CallHandler, InputRef, Output
from services.inference.providers.ultimate import EditedPicture, EditRequest, PictureEditor, open_editor
from services.inference.providers.ultimate_face_fixer import face_finder
from services.inference.tasktypes.checks import check_of
from services.inference.tasktypes.detail_enhancer import (
    DetailEnhancerHandler,
    DetailParts,
    detail_settings,
    details_enhanced,
    label_of,
)

if TYPE_CHECKING:
    from PIL import Image

    from services.inference.providers.kit import ProviderKit


class EditedGarmentHandler:
    """Brings details back into DETAIL_ENHANCER tasks' pictures.

    Args:
        editor: Redraws the tiles.
    """

    def __init__(self, editor: PictureEditor) -> None:
        self._editor = editor

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the two pictures."""
        return DetailEnhancerHandler().inputs(spec, task)

    async def run(self, context: CallContext) -> Output:
        """Bring the details back."""
        picture = EditedPicture(context, self._editor)
        return await picture.run(lambda: _fix(context, picture))


def handlers(kit: ProviderKit) -> Mapping[TaskType.ValueType, CallHandler]:
    """Return the handler of the one type that the pipeline executes.

    Raises:
        ValueError: The device executes it, or there is no account at who redraws.
    """
    return {
        TASK_TYPE_DETAIL_ENHANCER: EditedGarmentHandler(
            open_editor(kit, PROVIDER_TYPE_SARTIQ_ULTIMATE_GARMENT_FIXER, TASK_TYPE_DETAIL_ENHANCER)
        )
    }


class _NoCutter:
    """Finds no outline: the network that could needs more than this worker has."""

    def matte(self, image: Image.Image) -> None:  # noqa: ARG002 -- the protocol's signature
        """Return nothing."""
        return


def _fix(context: CallContext, picture: EditedPicture) -> Output:
    from modelkit.edited import EditedDetails  # noqa: PLC0415 -- OpenCV, for the first task

    label = label_of(context.spec, context.task) or "garment"
    prompt = (
        f"Redraw the {label} of the first picture with the details of the {label} of the second: the same fabric, "
        "seams, prints and logos. Its shape, folds, place and light stay exactly as they are, and so does all else."
    )

    def ask(operation: str, pictures: Sequence[Image.Image], side: int) -> Image.Image:
        return picture.edited(EditRequest(operation, prompt, pictures, side))

    check = check_of(detail_settings(context.spec, context.task), {})
    return details_enhanced(context, DetailParts(face_finder(), _NoCutter(), EditedDetails(ask), check), picture.done)
