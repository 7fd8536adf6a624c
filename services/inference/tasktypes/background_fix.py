"""BACKGROUND_FIX: a picture whose background has the colour of another picture's, behind an unchanged person.

The person is found by the networks for people. Where there is none, what stands out takes its place, found by the
network that `provider_config.rembg_model` names. `modelkit.background` tells what the members do.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atelier.tasks.v1.background_fix_pb2 import (
    BACKGROUND_FIX_STRATEGY_REPLACE,
    BackgroundFixTaskPublic,
    CreateBackgroundFixTask,
)
from atelier.tasks.v1.enums_pb2 import TaskType
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.images.notes import PictureNotes
from meshkit.worker.handlers import InputRef, Need, Output, OutputFile, TaskCancelled, TaskContext
from modelkit.errors import ModelError
from modelkit.pictures import open_picture, over_white
from services.inference.tasktypes.background_remove import network_of
from services.inference.tasktypes.failures import one_by_one
from services.inference.tasktypes.pictures import noted, save_png

if TYPE_CHECKING:  # they import OpenCV, which the parent never does
    from PIL import Image

    from modelkit.background import BackgroundChange
    from modelkit.mattes import Floats

_BASE = "base_image"
_PALETTE = "palette_image"
_VISION = "vision"
_CUTOUT = "cutout"
_RESULT = "image.png"
_STEPS = 4


class BackgroundFixHandler:
    """Changes BACKGROUND_FIX tasks' images, on the processor."""

    task_type: TaskType.ValueType = TaskType.TASK_TYPE_BACKGROUND_FIX
    families: tuple[str, ...] = ("vision", "cutout")

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the image and the palette."""
        shown, asked = task.background_fix, spec.background_fix
        return (
            InputRef(_BASE, shown.base_image_path or asked.base_image, "image"),
            InputRef(_PALETTE, shown.palette_image_path or asked.palette_image, "image"),
        )

    def batch_key(self, spec: CreateTask, task: Task) -> Hashable | None:  # noqa: ARG002 -- the protocol's signature
        """Change images one by one."""
        return None

    def needs(self, spec: CreateTask, task: Task) -> Sequence[Need]:
        """Name the networks that find people, and the one that finds what stands out."""
        return (Need(_VISION, "vision"), Need(_CUTOUT, "cutout", network_of(spec, task)))

    def run(self, batch: Sequence[TaskContext], lent: Mapping[str, Any]) -> Sequence[Output | Exception]:
        """Change each image; one that fails does not fail the others."""
        return one_by_one(batch, lambda context: _fix(context, lent))


def handler() -> BackgroundFixHandler:
    """Return the handler of the type."""
    return BackgroundFixHandler()


def _fix(context: TaskContext, lent: Mapping[str, Any]) -> Output:
    import numpy as np  # noqa: PLC0415 -- in the child alone
    from PIL import Image  # noqa: PLC0415 -- in the child alone

    from modelkit import background  # noqa: PLC0415 -- OpenCV, in the child alone

    began = time.monotonic()
    change = _change(context.spec.background_fix)
    image, palette = open_picture(context.inputs[_BASE]), open_picture(context.inputs[_PALETTE])
    _reached(context, 1)
    subject = _subject(image, lent)
    if subject is None:
        raise ModelError("base_image shows neither a person nor anything that stands out from its background.")
    _reached(context, 2)
    colour = background.background_colour(np.asarray(over_white(palette)), _subject(palette, lent))
    if colour is None:
        raise ModelError("palette_image shows no background: its subject fills it.")
    _reached(context, 3)
    if change.strategy == "replace" and image.mode == "RGBA":
        # A cut-out gets a background; its transparency would hide it.
        ground = Image.new("RGBA", image.size, background.rgb_of(colour))
        image = Image.alpha_composite(ground, image).convert("RGB")
    pixels = np.asarray(image.convert("RGB"))
    made = Image.fromarray(background.change_background(pixels, subject, colour, change))
    if image.mode == "RGBA":
        made.putalpha(image.getchannel("A"))
    notes = noted(context.spec, context.task, lambda: _notes(change))
    save_png(made, context.folder / _RESULT, notes)
    _reached(context, _STEPS)
    return Output(
        TaskResult(background_fix=BackgroundFixTaskPublic()),
        (OutputFile(_RESULT, "image/png", "result_image_path"),),
        time.monotonic() - began,
    )


def _subject(image: Image.Image, lent: Mapping[str, Any]) -> Floats | None:
    """Return the opacity of the person, or else of what stands out, at the picture's size."""
    import numpy as np  # noqa: PLC0415 -- in the child alone

    from modelkit import mattes  # noqa: PLC0415 -- OpenCV, in the child alone

    plain = over_white(image)
    person = lent[_VISION].person(plain)
    if person is not None:
        return mattes.refine(person, np.asarray(plain))
    found: Floats | None = lent[_CUTOUT].matte(image)
    return found


def _reached(context: TaskContext, step: int) -> None:
    if context.cancelled():
        raise TaskCancelled
    context.progress(step, _STEPS)


def _change(asked: CreateBackgroundFixTask) -> BackgroundChange:
    from modelkit.background import BackgroundChange  # noqa: PLC0415 -- OpenCV, in the child alone

    given: dict[str, Any] = {
        name: getattr(asked, field)
        for name, field in (
            ("shadow", "shadow_threshold"),
            ("light", "light_threshold"),
            ("expansion", "mask_expansion_percentage"),
            ("blur", "edge_blur_sigma"),
        )
        if asked.HasField(field)  # type: ignore[arg-type] # one of four above
    }
    if asked.strategy == BACKGROUND_FIX_STRATEGY_REPLACE:
        given["strategy"] = "replace"
    change = BackgroundChange(**given)
    if change.shadow > change.light:
        raise ModelError("shadow_threshold must not pass light_threshold (150 and 220 where absent).")
    return change


def _notes(change: BackgroundChange) -> PictureNotes:
    return PictureNotes(
        "BACKGROUND_FIX",
        settings={
            "strategy": change.strategy,
            "shadow_threshold": change.shadow,
            "light_threshold": change.light,
            "mask_expansion_percentage": change.expansion,
            "edge_blur_sigma": change.blur,
        },
    )
