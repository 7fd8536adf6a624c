"""IMAGE_ADJUSTER: an image brought to an aspect ratio, a size, and margins around its subject.

| mode | what it does |
|---|---|
| `crop` | cuts pixels, never adds any; `cropping_position` says what it keeps where margins do not |
| `pad` | adds background, never cuts |
| `auto` | crops up to 5 % difference of aspect, pads beyond it and where cropping cannot leave the margins |
| `scale` | zooms: with margins, to the subject, so that it has exactly those of the binding side |

`scaling_proportions` makes `scale` match one side exactly. `height` matches the vertical margins (the image's height if
there are none) and cuts or pads left and right; `width` does the same across. Margins that are not given come from the
subject of `reference_image`, if there is one. Without a target size, pixels are not resampled. The result is a PNG,
transparent where the image is.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atelier.tasks.v1.enums_pb2 import TaskType
from atelier.tasks.v1.image_adjuster_pb2 import ImageAdjusterTaskPublic
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.images.notes import PictureNotes
from meshkit.worker.handlers import InputRef, Need, Output, OutputFile, TaskCancelled, TaskContext
from modelkit.errors import ModelError
from modelkit.framing import FrameRequest, Margins, frame, margins_of
from modelkit.pictures import open_picture
from services.inference.tasktypes.failures import one_by_one
from services.inference.tasktypes.pictures import noted, save_png

if TYPE_CHECKING:  # it imports OpenCV, which the parent never does
    from PIL import Image

    from modelkit.vision import Vision

_INPUT = "input"
_REFERENCE = "reference"
_VISION = "vision"
_RESULT = "image.png"
_STEPS = 3


class ImageAdjusterHandler:
    """Adjusts IMAGE_ADJUSTER tasks' images, on the processor."""

    task_type: TaskType.ValueType = TaskType.TASK_TYPE_IMAGE_ADJUSTER
    families: tuple[str, ...] = ("vision",)

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the image, and the reference image where there is one."""
        source = task.image_adjuster.input_image_path or spec.image_adjuster.input_image
        refs = [InputRef(_INPUT, source, "image")]
        reference = _reference(spec, task)
        if reference:
            refs.append(InputRef(_REFERENCE, reference, "image"))
        return refs

    def batch_key(self, spec: CreateTask, task: Task) -> Hashable | None:  # noqa: ARG002 -- the protocol's signature
        """Adjust images one by one."""
        return None

    def needs(self, spec: CreateTask, task: Task) -> Sequence[Need]:
        """Name the networks that find the subject, where margins are measured from one."""
        return (Need(_VISION, "vision"),) if _margins(spec) or _reference(spec, task) else ()

    def run(self, batch: Sequence[TaskContext], lent: Mapping[str, Any]) -> Sequence[Output | Exception]:
        """Adjust each image; one that fails does not fail the others."""
        return one_by_one(batch, lambda context: _adjust(context, lent.get(_VISION)))


def handler() -> ImageAdjusterHandler:
    """Return the handler of the type."""
    return ImageAdjusterHandler()


def _adjust(context: TaskContext, vision: Vision | None) -> Output:
    from modelkit import canvas  # noqa: PLC0415 -- OpenCV, in the child alone

    began = time.monotonic()
    image = open_picture(context.inputs[_INPUT])
    _reached(context, 1)
    margins = _margins(context.spec)
    if _REFERENCE in context.inputs:
        reference = open_picture(context.inputs[_REFERENCE])
        margins = margins.over(margins_of(reference.size, _subject(vision, reference, "reference image")))
    request = _frame_request(context.spec, margins)
    found = frame(image.size, request, _subject(vision, image, "image") if margins else None)
    _reached(context, 2)
    if found is not None:
        image = canvas.draw(image, found, context.spec.image_adjuster.resampling or "lanczos")
    save_png(image, context.folder / _RESULT, noted(context.spec, context.task, lambda: _notes(context.spec)))
    _reached(context, _STEPS)
    return Output(
        TaskResult(image_adjuster=ImageAdjusterTaskPublic()),
        (OutputFile(_RESULT, "image/png", "result_image_path"),),
        time.monotonic() - began,
    )


def _subject(vision: Vision | None, image: Image.Image, what: str) -> tuple[float, float, float, float]:
    assert vision is not None  # `needs` names it for every task that measures margins
    subject = vision.subject(image)
    if subject is None:
        raise ModelError(f"No subject was found in the {what}, and margins are measured from one.")
    return subject.box


def _reached(context: TaskContext, step: int) -> None:
    if context.cancelled():
        raise TaskCancelled
    context.progress(step, _STEPS)


def _reference(spec: CreateTask, task: Task) -> str:
    if task.HasField("image_adjuster"):
        return task.image_adjuster.reference_image_path
    return spec.image_adjuster.reference_image


def _margins(spec: CreateTask) -> Margins:
    requested = spec.image_adjuster

    def side(name: str) -> float | None:
        return getattr(requested, name) if requested.HasField(name) else None  # type: ignore[arg-type] # one of four below

    return Margins(side("margin_left"), side("margin_top"), side("margin_right"), side("margin_bottom"))


def _frame_request(spec: CreateTask, margins: Margins) -> FrameRequest:
    requested = spec.image_adjuster
    values: dict[str, Any] = {"margins": margins, "tolerance": requested.tolerance}
    if requested.HasField("target_width") != requested.HasField("target_height"):
        raise ModelError("target_width and target_height are given together.")
    if requested.HasField("target_width"):
        values["size"] = (requested.target_width, requested.target_height)
    if requested.HasField("aspect_ratio"):
        if "size" in values:
            raise ModelError("aspect_ratio excludes target_width and target_height.")
        values["aspect"] = requested.aspect_ratio
    if not margins and "size" not in values and "aspect" not in values:
        raise ModelError("An aspect ratio, a target size, a margin or a reference image is required.")
    if requested.HasField("scaling_proportions"):
        values["proportions"] = requested.scaling_proportions
    return FrameRequest(mode=requested.mode or "auto", position=requested.cropping_position or "center", **values)  # type: ignore[arg-type] # the contract holds the values


def _notes(spec: CreateTask) -> PictureNotes:
    # What was asked for, less the pictures, which may be anybody's addresses.
    asked = {field.name: value for field, value in spec.image_adjuster.ListFields()}
    return PictureNotes(
        "IMAGE_ADJUSTER",
        settings={name: one for name, one in asked.items() if name not in ("input_image", "reference_image")},
    )
