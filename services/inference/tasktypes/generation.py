"""GENERATION: a picture from a prompt, and optionally from a reference picture and LoRA adapters.

Beside the documented fields, a caller may set these members of `config`; other members of it are ignored:

| member | value |
|---|---|
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
from typing import Any

from atelier.tasks.v1.enums_pb2 import TaskType
from atelier.tasks.v1.generation_pb2 import GenerationTaskPublic
from atelier.tasks.v1.providers_pb2 import LocalGenerationConfig
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.images.notes import PictureNotes
from meshkit.logging import get_logger
from meshkit.worker.handlers import InputRef, Need, Output, OutputFile, TaskCancelled, TaskContext, TaskFailed
from modelkit.card import ModelCard
from modelkit.errors import ModelError
from modelkit.pictures import open_picture, over_white
from modelkit.requests import AdapterFile, BatchSettings, ImageRequest, Picture
from services.inference.tasktypes.failures import explained
from services.inference.tasktypes.members import steered
from services.inference.tasktypes.pictures import save_png, wants_notes
from services.inference.tasktypes.seeds import seed_of

_log = get_logger(__name__)

_SLOTS = ("subject", "product", "style", "product2")
_REFERENCE = "reference"
_MODEL = "model"
_UPSCALER = "upscaler"
_RESULT = "image.png"
_DEFAULT_SIDE = 1024
# The documentation names no default. At half, both the reference and the prompt shape the picture.
_DEFAULT_STRENGTH = 50.0


@dataclass(frozen=True, slots=True)
class _Parameters:
    """A GENERATION task with its defaults filled in; strength is 0 to 1."""

    prompt: str
    width: int
    height: int
    seed: int
    reference: str | None
    strength: float
    adapters: tuple[tuple[str, str, float], ...]
    steps: int | None
    guidance_scale: float | None
    negative_prompt: str | None
    model: str | None
    metadata: bool


class GenerationHandler:
    """Makes GENERATION tasks' pictures with the worker's FLUX models."""

    task_type: TaskType.ValueType = TaskType.TASK_TYPE_GENERATION
    families: tuple[str, ...] = ("flux", "upscaler")

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the LoRA files of all slots, and the reference picture if its strength is above 0."""
        parameters = _read(spec, task)
        refs = [InputRef(slot, path, "lora") for slot, path, _ in parameters.adapters]
        if parameters.reference is not None:
            refs.append(InputRef(_REFERENCE, parameters.reference, "image"))
        return refs

    def batch_key(self, spec: CreateTask, task: Task) -> Hashable | None:
        """Batch pictures that one call of the pipeline can make; seeds and prompts may differ."""
        parameters = _read(spec, task)
        return (
            parameters.model,
            parameters.width,
            parameters.height,
            parameters.steps,
            parameters.guidance_scale,
            parameters.adapters,
            None if parameters.reference is None else parameters.strength,
        )

    def needs(self, spec: CreateTask, task: Task) -> Sequence[Need]:
        """Name the model that draws, and the upscaler for pictures larger than it draws."""
        return (Need(_MODEL, "flux", _read(spec, task).model), Need(_UPSCALER, "upscaler"))

    def run(self, batch: Sequence[TaskContext], lent: Mapping[str, Any]) -> Sequence[Output | Exception]:
        """Make the batch's pictures; a member that fails by itself does not fail the others."""
        outcomes: list[Output | Exception] = [TaskCancelled() for _ in batch]
        ready: list[tuple[int, _Parameters, ImageRequest]] = []
        for index, context in enumerate(batch):
            try:
                parameters = _read(context.spec, context.task)
                ready.append((index, parameters, _request(parameters, context)))
            except (TaskFailed, ModelError) as error:
                outcomes[index] = explained(error)
        if not ready:
            return outcomes
        parameters, context = ready[0][1], batch[ready[0][0]]
        began = time.monotonic()
        try:
            pictures = lent[_MODEL].generate(
                _settings(parameters, context.inputs), [request for _, _, request in ready], lent[_UPSCALER]
            )
        except ModelError as error:
            for index, _, _ in ready:
                outcomes[index] = explained(error)
            return outcomes
        share = (time.monotonic() - began) / len(ready)
        for (index, parameters, _), picture in zip(ready, pictures, strict=True):
            if picture is not None:
                outcomes[index] = _write(batch[index], parameters, picture, lent[_MODEL].card, share)
        return outcomes


def handler() -> GenerationHandler:
    """Return the handler of the type."""
    return GenerationHandler()


def _read(spec: CreateTask, task: Task) -> _Parameters:
    """Read the parameters from the current task; for a direct run, which stores no task, from the request."""
    requested = spec.generation
    current = task.generation if task.HasField("generation") else None

    def value(field: Any, default: Any = None) -> Any:
        if current is not None and (current.HasField(field) or field in _CLEARABLE):
            # What the current task lacks was cleared while it was PENDING.
            return getattr(current, field) if current.HasField(field) else default
        return getattr(requested, field) if requested.HasField(field) else default

    adapters = tuple(
        (slot, path, float(value(f"{slot}_lora_weight", 1.0)))
        for slot in _SLOTS
        if (path := value(f"{slot}_model_path"))
    )
    if current is not None:
        reference = current.reference_image_path or None
    else:
        reference = requested.reference_image_data or requested.reference_image_url or None
    strength = float(value("reference_image_strength", _DEFAULT_STRENGTH)) / 100
    config: LocalGenerationConfig = steered(spec, task, LocalGenerationConfig.DESCRIPTOR)
    return _Parameters(
        prompt=value("prompt", ""),
        width=value("width", _DEFAULT_SIDE),
        height=value("height", _DEFAULT_SIDE),
        seed=value("seed", seed_of(task.id)),
        # A reference of strength 0 is not fetched.
        reference=reference if strength > 0 else None,
        strength=strength,
        adapters=adapters,
        steps=config.steps or config.num_inference_steps or None,
        guidance_scale=config.guidance_scale if config.HasField("guidance_scale") else None,
        negative_prompt=config.negative_prompt if config.HasField("negative_prompt") else None,
        model=config.model or None,
        metadata=wants_notes(spec, task),
    )


_CLEARABLE = frozenset(
    {f"{slot}_model_path" for slot in _SLOTS}
    | {f"{slot}_lora_weight" for slot in _SLOTS}
    | {"reference_image_strength"}
)


def _request(parameters: _Parameters, context: TaskContext) -> ImageRequest:
    reference = None
    if parameters.reference is not None:
        reference = over_white(open_picture(context.inputs[_REFERENCE]))
    return ImageRequest(
        prompt=parameters.prompt,
        seed=parameters.seed,
        observer=context,
        negative_prompt=parameters.negative_prompt,
        reference=reference,
    )


def _settings(parameters: _Parameters, inputs: Mapping[str, Any]) -> BatchSettings:
    return BatchSettings(
        width=parameters.width,
        height=parameters.height,
        steps=parameters.steps,
        guidance_scale=parameters.guidance_scale,
        strength=parameters.strength if parameters.reference is not None else 0.0,
        adapters=tuple(AdapterFile(inputs[slot], weight, path) for slot, path, weight in parameters.adapters),
    )


def _write(context: TaskContext, parameters: _Parameters, picture: Picture, card: ModelCard, seconds: float) -> Output:
    warnings = []
    if picture.cut_tokens:
        _log.warning("prompt_cut", job_id=context.job_id, tokens=picture.cut_tokens)
        warnings.append(
            f"The prompt is {picture.cut_tokens} tokens longer than the model reads: its end had no say in the picture."
        )
    notes = _notes(parameters, card) if parameters.metadata else None
    save_png(picture.image, context.folder / _RESULT, notes)
    return Output(
        TaskResult(generation=GenerationTaskPublic(seed=parameters.seed), warnings=warnings),
        (OutputFile(_RESULT, "image/png", "result_image_path"),),
        seconds,
    )


def _notes(parameters: _Parameters, card: ModelCard) -> PictureNotes:
    return PictureNotes(
        task_type="GENERATION",
        prompt=parameters.prompt,
        negative_prompt=parameters.negative_prompt,
        model=card.name,
        seed=parameters.seed,
        settings={
            "steps": parameters.steps or card.steps.default,
            "guidance_scale": card.guidance.default if parameters.guidance_scale is None else parameters.guidance_scale,
            # A reference may be anybody's address: that there was one is told, and not where it lies.
            "strength": parameters.strength if parameters.reference is not None else None,
            "loras": [{"slot": slot, "path": path, "weight": weight} for slot, path, weight in parameters.adapters]
            or None,
        },
    )
