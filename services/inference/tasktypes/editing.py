"""EDITING: a picture changed by a prompt, optionally drawing on reference images and within a mask.

A model that reads instructions (FLUX Kontext) is told what to change. Another FLUX model paints the picture anew from
its prompt, starting from the picture under noise. Beside the documented fields, a caller may set these members of
`config`; other members of it are ignored:

| member | value |
|---|---|
| `fit` | how the picture is brought to the asked size: `contain` (nothing is lost), `cover`, `stretch` |
| `strength` | 0 (nothing changes) to 1; 1 for a model that reads instructions, else 0.75 |
| `mask_image` | picture whose white parts may change, of the base image's aspect, given like the base image |
| `mask_from_alpha` | whether the transparent parts of the base image are those that may change |
| `steps` (or `num_inference_steps`) | whole number from 1 to 1000, within the model's range |
| `guidance_scale` | 0 to 100 |
| `negative_prompt` | text of at most 10,000 characters |
| `model` | name of a model that the worker serves |
| `metadata` | false leaves out of the picture's file how it was made |
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from atelier.tasks.v1.editing_pb2 import EditingTaskPublic
from atelier.tasks.v1.enums_pb2 import TaskType
from atelier.tasks.v1.providers_pb2 import LocalEditingConfig
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult
from PIL import Image

from meshkit.images.notes import PictureNotes
from meshkit.logging import get_logger
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
from modelkit.card import ModelCard
from modelkit.errors import ModelError
from modelkit.pictures import Fit, framed, open_picture, over_white
from modelkit.requests import BatchSettings, ImageRequest, Picture
from services.inference.tasktypes.failures import explained
from services.inference.tasktypes.members import invalid, steered
from services.inference.tasktypes.pictures import save_png, wants_notes
from services.inference.tasktypes.seeds import seed_of

_log = get_logger(__name__)

_BASE = "base"
_REFERENCE = "reference"
_MASK = "mask"
_MODEL = "model"
_UPSCALER = "upscaler"
_RESULT = "image.png"
_DEFAULT_SIDE = 1024
# A model that reads instructions keeps what is not spoken of. One that does not has only the noise to change by.
_READS_INSTRUCTIONS = "flux-kontext"
_STRENGTHS = {_READS_INSTRUCTIONS: 1.0, "flux": 0.75}
_MASK_ASPECT_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class _EditSettings:
    """An EDITING task with its defaults filled in; strength is None where the model's kind decides it."""

    prompt: str
    width: int
    height: int
    seed: int
    base: str
    references: tuple[str, ...]
    fit: Fit
    strength: float | None
    mask: str | None
    mask_from_alpha: bool
    steps: int | None
    guidance_scale: float | None
    negative_prompt: str | None
    model: str | None
    metadata: bool


class EditingHandler:
    """Edits EDITING tasks' pictures with the worker's FLUX Kontext and FLUX models."""

    task_type: TaskType.ValueType = TaskType.TASK_TYPE_EDITING
    families: tuple[str, ...] = ("kontext", "flux", "upscaler")

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the picture, the references, and the mask where there is one."""
        settings = _read(spec, task)
        refs = [InputRef(_BASE, settings.base, "image"), *image_refs(_REFERENCE, settings.references)]
        if settings.mask is not None:
            refs.append(InputRef(_MASK, settings.mask, "image"))
        return refs

    def batch_key(self, spec: CreateTask, task: Task) -> Hashable | None:
        """Batch edits that one call of the pipeline can make; pictures, prompts and seeds may differ."""
        settings = _read(spec, task)
        return (
            settings.model,
            settings.width,
            settings.height,
            settings.steps,
            settings.guidance_scale,
            settings.strength,
            len(settings.references),
            settings.mask is not None or settings.mask_from_alpha,
        )

    def needs(self, spec: CreateTask, task: Task) -> Sequence[Need]:
        """Name the model that edits, and the upscaler for pictures larger than it draws."""
        return (Need(_MODEL, "kontext", _read(spec, task).model, ("flux",)), Need(_UPSCALER, "upscaler"))

    def run(self, batch: Sequence[TaskContext], lent: Mapping[str, Any]) -> Sequence[Output | Exception]:
        """Edit the batch's pictures; a member that fails by itself does not fail the others."""
        outcomes: list[Output | Exception] = [TaskCancelled() for _ in batch]
        ready: list[tuple[int, _EditSettings, ImageRequest]] = []
        for index, context in enumerate(batch):
            try:
                settings = _read(context.spec, context.task)
                ready.append((index, settings, _request(settings, context)))
            except (TaskFailed, ModelError) as error:
                outcomes[index] = explained(error)
        if not ready:
            return outcomes
        model = lent[_MODEL]
        began = time.monotonic()
        try:
            pictures = model.generate(
                _batch_settings(ready[0][1], model.card.architecture),
                [request for _, _, request in ready],
                lent[_UPSCALER],
            )
        except ModelError as error:
            for index, _, _ in ready:
                outcomes[index] = explained(error)
            return outcomes
        share = (time.monotonic() - began) / len(ready)
        for (index, settings, _), picture in zip(ready, pictures, strict=True):
            if picture is not None:
                outcomes[index] = _write(batch[index], settings, picture, model.card, share)
        return outcomes


def handler() -> EditingHandler:
    """Return the handler of the type."""
    return EditingHandler()


def _read(spec: CreateTask, task: Task) -> _EditSettings:
    """Read the settings; a direct run, which stores no task, has its pictures in the request alone."""
    requested = spec.editing
    current = task.editing if task.HasField("editing") else None
    config: LocalEditingConfig = steered(spec, task, LocalEditingConfig.DESCRIPTOR)
    if current is not None:
        base, references = current.base_image_path, tuple(current.reference_images)
    else:
        base = requested.base_image or requested.base_image_data or requested.base_image_url
        references = tuple(requested.reference_images) or tuple(
            one for one in (requested.reference_image_data or requested.reference_image_url,) if one
        )
    return _EditSettings(
        prompt=requested.prompt,
        width=requested.width if requested.HasField("width") else _DEFAULT_SIDE,
        height=requested.height if requested.HasField("height") else _DEFAULT_SIDE,
        seed=_seed(requested, current, task.id),
        base=base,
        references=references,
        fit=cast("Fit", config.fit) or "contain",
        strength=config.strength if config.HasField("strength") else None,
        mask=config.mask_image or None,
        mask_from_alpha=config.mask_from_alpha,
        steps=config.steps or config.num_inference_steps or None,
        guidance_scale=config.guidance_scale if config.HasField("guidance_scale") else None,
        negative_prompt=config.negative_prompt if config.HasField("negative_prompt") else None,
        model=config.model or None,
        metadata=wants_notes(spec, task),
    )


def _seed(requested: Any, current: EditingTaskPublic | None, task_id: str) -> int:
    if current is not None and current.HasField("seed"):
        return current.seed
    return requested.seed if requested.HasField("seed") else seed_of(task_id)


def _request(settings: _EditSettings, context: TaskContext) -> ImageRequest:
    size = (settings.width, settings.height)
    base = open_picture(context.inputs[_BASE])
    mask = _mask(settings, base, context)
    return ImageRequest(
        prompt=settings.prompt,
        seed=settings.seed,
        observer=context,
        negative_prompt=settings.negative_prompt,
        reference=framed(over_white(base), *size, settings.fit),
        others=tuple(
            over_white(open_picture(context.inputs[f"{_REFERENCE}[{index}]"]))
            for index in range(len(settings.references))
        ),
        mask=None if mask is None else framed(mask, *size, settings.fit, ground=(0,)),
    )


def _mask(settings: _EditSettings, base: Image.Image, context: TaskContext) -> Image.Image | None:
    """Return where the picture may change, as grey levels of the base image's size; None where it may everywhere."""
    if settings.mask is not None:
        given = open_picture(context.inputs[_MASK]).convert("RGBA")
        if abs(given.width / given.height / (base.width / base.height) - 1) > _MASK_ASPECT_TOLERANCE:
            raise invalid("config.mask_image must have the aspect of the base image.")
        black = Image.new("RGBA", given.size, "black")
        mask, source = Image.alpha_composite(black, given).convert("L").resize(base.size), "config.mask_image"
    elif settings.mask_from_alpha:
        if base.mode != "RGBA":
            raise invalid("config.mask_from_alpha needs a base image with transparent parts.")
        mask, source = base.getchannel("A").point(lambda level: 255 - level), "config.mask_from_alpha"
    else:
        return None
    if cast("int", mask.getextrema()[1]) < 128:
        raise invalid(f"{source} marks no part that may change: white may, black may not.")
    return mask


def _batch_settings(settings: _EditSettings, architecture: str) -> BatchSettings:
    strength = _STRENGTHS[architecture] if settings.strength is None else settings.strength
    return BatchSettings(
        width=settings.width,
        height=settings.height,
        steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        strength=1 - strength,
        whole=True,
    )


def _write(context: TaskContext, settings: _EditSettings, picture: Picture, card: ModelCard, seconds: float) -> Output:
    warnings = []
    if picture.cut_tokens:
        _log.warning("prompt_cut", job_id=context.job_id, tokens=picture.cut_tokens)
        warnings.append(
            f"The prompt is {picture.cut_tokens} tokens longer than the model reads: its end had no say in the picture."
        )
    notes = _notes(settings, card) if settings.metadata else None
    save_png(picture.image, context.folder / _RESULT, notes)
    return Output(
        TaskResult(editing=EditingTaskPublic(seed=settings.seed), warnings=warnings),
        (OutputFile(_RESULT, "image/png", "result_image_path"),),
        seconds,
    )


def _notes(settings: _EditSettings, card: ModelCard) -> PictureNotes:
    return PictureNotes(
        task_type="EDITING",
        prompt=settings.prompt,
        negative_prompt=settings.negative_prompt,
        model=card.name,
        seed=settings.seed,
        settings={
            "steps": settings.steps or card.steps.default,
            "guidance_scale": card.guidance.default if settings.guidance_scale is None else settings.guidance_scale,
            "strength": _STRENGTHS[card.architecture] if settings.strength is None else settings.strength,
            "fit": settings.fit,
            # Pictures may be anybody's addresses: how many there were is told, and not where they lie.
            "reference_images": len(settings.references) or None,
            "masked": settings.mask is not None or settings.mask_from_alpha or None,
        },
    )
