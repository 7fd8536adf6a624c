"""GENERATION and EDITING by an application of fal."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atelier.tasks.v1.editing_pb2 import EditingTaskPublic
from atelier.tasks.v1.enums_pb2 import TASK_TYPE_EDITING, TASK_TYPE_GENERATION
from atelier.tasks.v1.generation_pb2 import GenerationTaskPublic
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult
from google.protobuf.struct_pb2 import Struct

from meshkit.worker.handlers import CallContext, InputRef, Output, OutputFile, image_refs
from modelkit.pictures import Fit, framed, open_picture, over_white
from services.inference.providers.fal_jobs import FalJobs, first_url, settings_of, static_arguments
from services.inference.providers.fal_queue import NAME
from services.inference.providers.results import data_url
from services.inference.tasktypes import members
from services.inference.tasktypes.seeds import seed_of

_BASE, _REFERENCE, _MASK = "base", "reference", "mask"
_RESULT = "image.png"
_DEFAULT_SIDE = 1024
_DEFAULT_STRENGTH = 50.0
_FITS: tuple[Fit, ...] = ("contain", "cover", "stretch")
_MAX_TEXT = 10_000


class FalGenerationHandler:
    """Has an application draw GENERATION tasks' pictures."""

    def __init__(self, jobs: FalJobs) -> None:
        self._jobs = jobs

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the reference picture, where it has a say."""
        source, strength = _reference(spec, task)
        return [InputRef(_REFERENCE, source, "image")] if source and strength > 0 else []

    async def run(self, context: CallContext) -> Output:
        """Draw the picture."""
        began = time.monotonic()
        reference = context.inputs.get(_REFERENCE)
        image = None if reference is None else await data_url(reference)
        settings = settings_of(context.spec, context.task).fal_standard
        arguments = {**static_arguments(settings), **generation_arguments(context.spec, context.task, image)}

        async def finish(answer: dict[str, Any]) -> Output:
            size = arguments["image_size"]
            await self._jobs.kit.results.picture(
                NAME, first_url(answer), context.folder / _RESULT, size=(size["width"], size["height"])
            )
            return Output(
                TaskResult(generation=GenerationTaskPublic(seed=arguments["seed"])),
                (OutputFile(_RESULT, "image/png", "result_image_path"),),
                time.monotonic() - began,
            )

        return await self._jobs.ask(context, TASK_TYPE_GENERATION, settings.fal_app_id, arguments, finish)


class FalEditingHandler:
    """Has an application edit EDITING tasks' pictures.

    The picture is brought to the asked size before it is sent, as `config.fit` says, so that the result has the same
    aspect. `config.mask_image` goes along as `mask_url`.
    """

    def __init__(self, jobs: FalJobs) -> None:
        self._jobs = jobs

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the picture, the references, and the mask where there is one."""
        requested, current = spec.editing, task.editing
        base = current.base_image_path or requested.base_image or requested.base_image_data or requested.base_image_url
        references = tuple(current.reference_images or requested.reference_images)
        refs = [InputRef(_BASE, base, "image"), *image_refs(_REFERENCE, references)]
        if mask := members.text(config_of(spec, task), "mask_image", 32_000_000):
            refs.append(InputRef(_MASK, mask, "image"))
        return refs

    async def run(self, context: CallContext) -> Output:
        """Edit the picture."""
        began = time.monotonic()
        size = _size(context.spec.editing)
        how = _fit(members.text(config_of(context.spec, context.task), "fit", 16))
        images = [await asyncio.to_thread(_framed_url, context.inputs[_BASE], size, how)]
        count = sum(1 for name in context.inputs if name.startswith(f"{_REFERENCE}["))
        images += [await data_url(context.inputs[f"{_REFERENCE}[{index}]"]) for index in range(count)]
        settings = settings_of(context.spec, context.task).fal_standard
        arguments = {**static_arguments(settings), **editing_arguments(context.spec, context.task, images)}
        if (mask := context.inputs.get(_MASK)) is not None:
            arguments["mask_url"] = await asyncio.to_thread(_framed_url, mask, size, how, mask=True)

        async def finish(answer: dict[str, Any]) -> Output:
            await self._jobs.kit.results.picture(NAME, first_url(answer), context.folder / _RESULT, size=size)
            return Output(
                TaskResult(editing=EditingTaskPublic(seed=arguments["seed"])),
                (OutputFile(_RESULT, "image/png", "result_image_path"),),
                time.monotonic() - began,
            )

        return await self._jobs.ask(context, TASK_TYPE_EDITING, settings.fal_app_id, arguments, finish)


def generation_arguments(spec: CreateTask, task: Task, reference: str | None) -> dict[str, Any]:
    """Return what an application that draws is given.

    Args:
        spec: The task as accepted.
        task: The task as it stands.
        reference: The reference picture as a data URL.
    """
    requested = spec.generation
    current = task.generation if task.WhichOneof("detail") is not None else None
    seeded = current if current is not None and current.HasField("seed") else requested
    arguments: dict[str, Any] = {
        "prompt": requested.prompt,
        "seed": seeded.seed if seeded.HasField("seed") else seed_of(task.id),
        "image_size": _image_size(_size(requested)),
        "num_images": 1,
        "output_format": "png",
        **_configured(config_of(spec, task)),
    }
    if reference is not None:
        # There the number says how far the picture may depart from its reference.
        arguments |= {"image_url": reference, "strength": round(1 - _reference(spec, task)[1], 4)}
    return arguments


def editing_arguments(spec: CreateTask, task: Task, images: Sequence[str]) -> dict[str, Any]:
    """Return what an application that edits is given.

    Args:
        spec: The task as accepted.
        task: The task as it stands.
        images: The picture and its references as data URLs.
    """
    requested = spec.editing
    current = task.editing if task.WhichOneof("detail") is not None else None
    seeded = current if current is not None and current.HasField("seed") else requested
    config = config_of(spec, task)
    arguments: dict[str, Any] = {
        "prompt": requested.prompt,
        "seed": seeded.seed if seeded.HasField("seed") else seed_of(task.id),
        # Applications of one picture read the first name, those of several the second.
        "image_url": images[0],
        "image_urls": list(images),
        "image_size": _image_size(_size(requested)),
        "num_images": 1,
        "output_format": "png",
        **_configured(config),
    }
    if (strength := members.number(config, "strength", 0, 1)) is not None:
        arguments["strength"] = strength
    return arguments


def config_of(spec: CreateTask, task: Task) -> Struct:
    """Return the task's `config` as it stands."""
    return task.config if task.HasField("config") else spec.config


def _configured(config: Struct) -> Mapping[str, Any]:
    """Return what `config` says, of what it may say to a model of the device as well."""
    steps = members.whole(config, "steps", 1, 1000)
    found = {
        "num_inference_steps": members.whole(config, "num_inference_steps", 1, 1000) if steps is None else steps,
        "guidance_scale": members.number(config, "guidance_scale", 0, 100),
        "negative_prompt": members.text(config, "negative_prompt", _MAX_TEXT),
    }
    return {name: value for name, value in found.items() if value is not None}


def _reference(spec: CreateTask, task: Task) -> tuple[str, float]:
    """Return the reference picture, and how strongly it shapes the result, 0 to 1."""
    requested = spec.generation
    if task.WhichOneof("detail") is None:
        share = requested.reference_image_strength if requested.HasField("reference_image_strength") else None
        source = requested.reference_image_data or requested.reference_image_url
    else:
        current = task.generation
        share = current.reference_image_strength if current.HasField("reference_image_strength") else None
        source = current.reference_image_path
    return source, (_DEFAULT_STRENGTH if share is None else share) / 100


def _size(requested: Any) -> tuple[int, int]:
    return (
        requested.width if requested.HasField("width") else _DEFAULT_SIDE,
        requested.height if requested.HasField("height") else _DEFAULT_SIDE,
    )


def _image_size(size: tuple[int, int]) -> dict[str, int]:
    return {"width": size[0], "height": size[1]}


def _fit(name: str | None) -> Fit:
    if name is not None and name not in _FITS:
        raise members.invalid(f"config.fit must be one of {', '.join(_FITS)}.")
    return name or "contain"


def _framed_url(path: Path, size: tuple[int, int], how: Fit, *, mask: bool = False) -> str:
    """Return a picture at a size as a data URL; of a mask, what is added around it may not change."""
    image = open_picture(path)
    plain = image.convert("L") if mask else over_white(image)
    buffer = io.BytesIO()
    framed(plain, *size, how, ground=(0,) if mask else None).save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
