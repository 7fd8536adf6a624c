"""PHOTO_DETECTION: what a photo shows of people and garments, and whether it is sharp and well exposed.

The networks find people, faces and the subject; the rest is measured in the pixels (`modelkit.photos`). The result is
the task's `findings`; no file is made.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atelier.tasks.v1.enums_pb2 import TaskType
from atelier.tasks.v1.photo_detection_pb2 import (
    PhotoBox,
    PhotoColour,
    PhotoDetection,
    PhotoDetectionTaskPublic,
    PhotoFindings,
    PhotoJoint,
)
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.worker.handlers import InputRef, Need, Output, TaskCancelled, TaskContext
from modelkit.pictures import open_picture
from services.inference.tasktypes.failures import one_by_one

if TYPE_CHECKING:  # they import OpenCV, which the parent never does
    from modelkit.photos import Box, Colour, ExaminedPhoto, FoundInPhoto
    from modelkit.vision import Vision

_INPUT = "input"
_VISION = "vision"
_STEPS = 2


class PhotoDetectionHandler:
    """Examines PHOTO_DETECTION tasks' photos, on the processor."""

    task_type: TaskType.ValueType = TaskType.TASK_TYPE_PHOTO_DETECTION
    families: tuple[str, ...] = ("vision",)

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the photo."""
        return (InputRef(_INPUT, task.photo_detection.input_image_path or spec.photo_detection.input_image, "image"),)

    def batch_key(self, spec: CreateTask, task: Task) -> Hashable | None:  # noqa: ARG002 -- the protocol's signature
        """Examine photos one by one."""
        return None

    def needs(self, spec: CreateTask, task: Task) -> Sequence[Need]:  # noqa: ARG002 -- the protocol's signature
        """Name the networks that find people."""
        return (Need(_VISION, "vision"),)

    def run(self, batch: Sequence[TaskContext], lent: Mapping[str, Any]) -> Sequence[Output | Exception]:
        """Examine each photo; one that fails does not fail the others."""
        return one_by_one(batch, lambda context: _examine(context, lent[_VISION]))


def handler() -> PhotoDetectionHandler:
    """Return the handler of the type."""
    return PhotoDetectionHandler()


def _examine(context: TaskContext, vision: Vision) -> Output:
    from modelkit import photos  # noqa: PLC0415 -- OpenCV, in the child alone

    began = time.monotonic()
    image = open_picture(context.inputs[_INPUT])
    if context.cancelled():
        raise TaskCancelled
    context.progress(1, _STEPS)
    findings = _findings(photos.examine(image, vision))
    context.progress(_STEPS, _STEPS)
    result = TaskResult(photo_detection=PhotoDetectionTaskPublic(findings=findings))
    return Output(result, (), time.monotonic() - began)


def _findings(photo: ExaminedPhoto) -> PhotoFindings:
    width, height = photo.size
    return PhotoFindings(
        width=width,
        height=height,
        people=photo.people,
        presence_confidence=_share(photo.presence),
        detections=[_detection(one) for one in photo.found],
        framing=photo.framing,
        view_angle=photo.view,
        shot_confidence=None if photo.shot_confidence is None else _share(photo.shot_confidence),
        collage=photo.collage,
        subject=photo.subject,
        subject_box=None if photo.subject_box is None else _box(photo.subject_box),
        cut_sides=photo.cut,
        garment_colour=None if photo.garment is None else _colour(photo.garment),
        blur=_share(photo.blur),
        blurred=photo.blurred,
        exposure=photo.light.exposure,
        median_level=round(photo.light.median, 1),
        burnt_share=_share(photo.light.burnt),
        black_share=_share(photo.light.black),
        brightest_level=round(photo.light.brightest, 1),
    )


def _detection(found: FoundInPhoto) -> PhotoDetection:
    return PhotoDetection(
        object_type=found.kind,
        confidence=_share(found.confidence),
        bbox=_box(found.box),
        joints=[PhotoJoint(name=one.name, x=one.x, y=one.y, confidence=_share(one.confidence)) for one in found.joints],
    )


def _box(box: Box) -> PhotoBox:
    left, top, right, bottom = box
    return PhotoBox(left=left, top=top, width=right - left, height=bottom - top)


def _colour(colour: Colour) -> PhotoColour:
    return PhotoColour(name=colour.name, hex="#{:02x}{:02x}{:02x}".format(*colour.rgb), share=_share(colour.share))


def _share(value: float) -> float:
    return round(min(1.0, max(0.0, value)), 4)
