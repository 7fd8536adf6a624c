"""BACKGROUND_REMOVE: pictures with their subjects alone, in RGBA, one for each input and in the inputs' order.

`provider_config.rembg_model` names the network. The network of garments (`u2net_cloth_seg`) takes one member of
`config`, `cloth_category`: `all` (the default), `upper`, `lower` or `full`.

A picture that fails leaves "" in its place and a line in `errors` that names it. The task fails where all of them do.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atelier.tasks.v1.background_removal_pb2 import BackgroundRemovalTaskPublic
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_VALIDATION, TaskType
from atelier.tasks.v1.providers_pb2 import LocalCutoutConfig
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.images.notes import PictureNotes
from meshkit.worker.handlers import (
    InputRef,
    Need,
    Output,
    OutputFile,
    TaskCancelled,
    TaskContext,
    TaskFailed,
    image_refs,
)
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.pictures import open_picture
from modelkit.requests import Garment
from services.inference.tasktypes.failures import one_by_one
from services.inference.tasktypes.members import steered
from services.inference.tasktypes.pictures import noted, save_png

if TYPE_CHECKING:  # it imports OpenCV, which the parent never does
    from modelkit.cutout import Cutout

_INPUT = "input_image_paths"
_CUTOUT = "cutout"
_RESULTS = "result_image_paths"


class BackgroundRemoveHandler:
    """Cuts out BACKGROUND_REMOVE tasks' images, on the processor."""

    task_type: TaskType.ValueType = TaskType.TASK_TYPE_BACKGROUND_REMOVE
    families: tuple[str, ...] = ("cutout",)

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the images; the task can do without some of them."""
        return image_refs(_INPUT, _sources(spec, task), required=False)

    def batch_key(self, spec: CreateTask, task: Task) -> Hashable | None:  # noqa: ARG002 -- the protocol's signature
        """Cut out images one by one."""
        return None

    def needs(self, spec: CreateTask, task: Task) -> Sequence[Need]:
        """Name the network that the task asks for."""
        return (Need(_CUTOUT, "cutout", network_of(spec, task)),)

    def run(self, batch: Sequence[TaskContext], lent: Mapping[str, Any]) -> Sequence[Output | Exception]:
        """Cut out the images of each task; one that fails does not fail the others."""
        return one_by_one(batch, lambda context: _cut(context, lent[_CUTOUT]))


def handler() -> BackgroundRemoveHandler:
    """Return the handler of the type."""
    return BackgroundRemoveHandler()


def network_of(spec: CreateTask, task: Task) -> str | None:
    """Return the network that a task names for its cut-outs; None where it names none."""
    config = task.provider_config if task.HasField("provider_config") else spec.provider_config
    return config.local.rembg_model or None


def _cut(context: TaskContext, network: Cutout) -> Output:
    began = time.monotonic()
    count = len(_sources(context.spec, context.task))
    garment: Garment = steered(context.spec, context.task, LocalCutoutConfig.DESCRIPTOR).cloth_category
    notes = noted(context.spec, context.task, lambda: _notes(context, garment))
    files: list[OutputFile] = []
    errors: list[str] = []
    for index in range(count):
        if context.cancelled():
            raise TaskCancelled
        name = f"{_INPUT}[{index}]"
        file = f"image-{index}.png"
        try:
            if name in context.refused_inputs:
                errors.append(context.refused_inputs[name])
                continue
            cut = network.cut(open_picture(context.inputs[name]), garment)
            if cut is None:
                raise ModelError("The picture shows nothing that stands out from its background.")
            save_png(cut, context.folder / file, notes)
            files.append(OutputFile(file, "image/png", _RESULTS, index))
        except ModelError as error:
            if error.fault is not ModelErrorKind.VALIDATION:
                raise
            errors.append(f"{name}: {error.message}")
        finally:
            context.progress(index + 1, count)
    if not files:
        raise TaskFailed(" ".join(errors), ERROR_CATEGORY_VALIDATION, retryable=False)
    result = BackgroundRemovalTaskPublic(result_image_paths=[""] * count)
    return Output(TaskResult(background_remove=result), tuple(files), time.monotonic() - began, tuple(errors))


def _sources(spec: CreateTask, task: Task) -> Sequence[str]:
    return task.background_remove.input_image_paths or spec.background_remove.input_image_paths


def _notes(context: TaskContext, garment: Garment) -> PictureNotes:
    network = network_of(context.spec, context.task)
    settings = {"cloth_category": garment} if network == "u2net_cloth_seg" else {}
    return PictureNotes("BACKGROUND_REMOVE", model=network, settings=settings)
