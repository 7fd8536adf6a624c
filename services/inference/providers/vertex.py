"""VERTEX: Gemini makes, edits and refines pictures, and answers prompts.

Gemini draws at ten aspects and three sizes. A picture that it starts from is padded to such an aspect, and the result
is cut back; one that it makes from words alone is brought to its size as `config.fit` says (`contain`, which loses
nothing, `cover`, `stretch`). It repeats no picture by a seed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atelier.tasks.v1.editing_pb2 import EditingTaskPublic
from atelier.tasks.v1.enums_pb2 import (
    PROVIDER_TYPE_VERTEX,
    TASK_TYPE_EDITING,
    TASK_TYPE_GENERATION,
    TASK_TYPE_LLM_INTERACTION,
    TASK_TYPE_REFINE,
    TaskType,
)
from atelier.tasks.v1.generation_pb2 import GenerationTaskPublic
from atelier.tasks.v1.providers_pb2 import VertexConfig
from atelier.tasks.v1.refine_pb2 import RefineTaskPublic
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.validation import apply_defaults
from meshkit.worker.handlers import CallContext, CallHandler, InputRef, Output, image_refs
from modelkit.pictures import Fit
from services.inference.providers import aspects
from services.inference.providers.chats import ModelChat, ModelPrompt, open_chat
from services.inference.providers.encoded import SentPicture
from services.inference.providers.gemini_pictures import (
    BASE,
    RESULT,
    GeminiPictures,
    asks_for_faces,
    growth_note,
    picture_output,
    refine_prompt,
    refined_base,
    refined_refs,
    refined_size,
    require_account,
    unchanged,
)
from services.inference.providers.language import answer_prompt, shown, shown_refs
from services.inference.providers.paid import Order
from services.inference.providers.results import size_of
from services.inference.tasktypes import members

if TYPE_CHECKING:
    from services.inference.providers.kit import ProviderKit

_REFERENCE = "reference"
_DEFAULT_SIDE = 1024
_DEFAULT_STRENGTH = 50.0
_FITS: tuple[Fit, ...] = ("contain", "cover", "stretch")
SYSTEM = (
    "You are a specialist in fashion photography. You know garments: their cut, drape, fabric, seams, prints and "
    "logos, and how they sit on a body. Draw photorealistic pictures with natural light, correct anatomy and true "
    "colours. Change what you are asked to change and nothing else: the garments, the person's identity, the pose, the "
    "framing and the background stay as they are. Add no text, no watermark and no border."
)
SYSTEM_OF_TEXT = (
    "You are a specialist in fashion: garments, fabrics, styling and fashion photography. Answer precisely and briefly."
)


class _VertexPictures:
    """What the handlers of picture types share."""

    task_type: TaskType.ValueType

    def __init__(self, kit: ProviderKit) -> None:
        self._kit = kit
        self._pictures = GeminiPictures(kit)

    async def _drawn(
        self,
        context: CallContext,
        prompt: str,
        pictures: Sequence[SentPicture],
        finish: Callable[[Path], Awaitable[Output]],
        *,
        aspect: str,
        image_size: str | None = None,
    ) -> Output:
        from services.inference.providers.gemini import NAME, PictureRequest  # noqa: PLC0415 -- as above

        config = config_of(context.spec, context.task)
        model = config.model or self._kit.settings.gemini_image_model
        asked = PictureRequest(
            model=model,
            prompt=prompt,
            pictures=pictures,
            system=config.system_instructions or SYSTEM,
            aspect_ratio=aspect,
            image_size=image_size or config.image_size,
            temperature=config.temperature,
            top_p=config.top_p,
        )
        order = Order(PROVIDER_TYPE_VERTEX, NAME, model, "draw", self._kit.seconds(self.task_type))
        return await self._pictures.drawn(context, order, asked, finish)


class VertexGenerationHandler(_VertexPictures):
    """Makes GENERATION tasks' pictures."""

    task_type = TASK_TYPE_GENERATION

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the reference picture, if its strength is above 0."""
        asked = spec.generation
        source = task.generation.reference_image_path or asked.reference_image_data or asked.reference_image_url
        return [InputRef(_REFERENCE, source, "image")] if source and _strength(spec, task) > 0 else []

    async def run(self, context: CallContext) -> Output:
        """Have the picture drawn."""
        asked = context.spec.generation
        size = (
            asked.width if asked.HasField("width") else _DEFAULT_SIDE,
            asked.height if asked.HasField("height") else _DEFAULT_SIDE,
        )
        fit, aspect = _fit(context), config_of(context.spec, context.task).aspect_ratio
        prompt, pictures = asked.prompt, []
        if _REFERENCE in context.inputs:
            strength = _strength(context.spec, context.task)
            prompt = f"{prompt}\n\nStart from the picture that is given; keep {strength:g} percent of it."
            pictures = [await asyncio.to_thread(aspects.reference, context.inputs[_REFERENCE])]

        async def finish(drawing: Path) -> Output:
            target = context.folder / RESULT
            grown, off = await asyncio.to_thread(aspects.fitted, drawing, target, size, fit)
            warnings = [] if not off else [f"The picture was drawn at another aspect, and brought to its size: {fit}."]
            return picture_output(
                TaskResult(generation=GenerationTaskPublic(), warnings=[*warnings, *growth_note(grown)])
            )

        return await self._drawn(context, prompt, pictures, finish, aspect=aspect or aspects.nearest_aspect(*size))


class VertexEditingHandler(_VertexPictures):
    """Edits EDITING tasks' pictures."""

    task_type = TASK_TYPE_EDITING

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the picture and the references."""
        asked, current = spec.editing, task.editing
        base = current.base_image_path or asked.base_image or asked.base_image_data or asked.base_image_url
        references = (
            current.reference_images
            or asked.reference_images
            or [one for one in (asked.reference_image_data or asked.reference_image_url,) if one]
        )
        return [InputRef(BASE, base, "image"), *image_refs(_REFERENCE, references)]

    async def run(self, context: CallContext) -> Output:
        """Have the picture edited."""
        asked = context.spec.editing
        size = (
            asked.width if asked.HasField("width") else _DEFAULT_SIDE,
            asked.height if asked.HasField("height") else _DEFAULT_SIDE,
        )
        config, fit = config_of(context.spec, context.task), _fit(context)
        sheet = aspects.Sheet.around(*size, config.aspect_ratio or None)
        side = aspects.SIDES[config.image_size]

        def pictures() -> list[SentPicture]:
            base = aspects.sent(aspects.base_of(context.inputs[BASE], size, fit), sheet, side)
            names = [name for name in context.inputs if name != BASE]
            return [base, *(aspects.reference(context.inputs[name]) for name in names)]

        async def finish(drawing: Path) -> Output:
            grown = await asyncio.to_thread(aspects.brought, drawing, context.folder / RESULT, sheet, size)
            return picture_output(TaskResult(editing=EditingTaskPublic(), warnings=growth_note(grown)))

        sent = await asyncio.to_thread(pictures)
        return await self._drawn(context, asked.prompt, sent, finish, aspect=sheet.aspect)


class VertexRefineHandler(_VertexPictures):
    """Refines REFINE tasks' pictures."""

    task_type = TASK_TYPE_REFINE

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the picture."""
        return refined_refs(spec, task)

    async def run(self, context: CallContext) -> Output:
        """Have the picture redrawn at its new size; one of which nothing is asked is given back, without a request."""
        asked, path = context.spec.refine, context.inputs[BASE]
        own = await size_of(path)
        size = refined_size(own, asked)
        if size == own and not asks_for_faces(asked):
            return await unchanged(path, context.folder)
        config = config_of(context.spec, context.task)
        sheet = aspects.Sheet.around(*size, config.aspect_ratio or None)
        largest = max(config.image_size, aspects.image_size_for(*size))

        async def finish(drawing: Path) -> Output:
            grown = await asyncio.to_thread(aspects.brought, drawing, context.folder / RESULT, sheet, size, path)
            return picture_output(TaskResult(refine=RefineTaskPublic(), warnings=growth_note(grown)))

        base = await asyncio.to_thread(refined_base, path, sheet, aspects.SIDES[largest])
        return await self._drawn(context, refine_prompt(asked), [base], finish, aspect=sheet.aspect, image_size=largest)


class VertexLanguageHandler:
    """Answers LLM_INTERACTION tasks' prompts.

    Args:
        kit: What providers share.
    """

    def __init__(self, kit: ProviderKit) -> None:
        self._kit = kit

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the pictures that the model is shown."""
        return shown_refs(spec, task)

    async def run(self, context: CallContext) -> Output:
        """Have the model answer."""
        config = config_of(context.spec, context.task)
        asked = context.spec.llm_interaction
        prompt = ModelPrompt(
            model=config.model or self._kit.settings.gemini_text_model,
            prompt=asked.prompt,
            system=asked.system_prompt or config.system_instructions or SYSTEM_OF_TEXT,
            pictures=await shown(context.inputs),
            temperature=config.temperature,
            top_p=config.top_p,
        )
        return await answer_prompt(self._kit, context, PROVIDER_TYPE_VERTEX, self._chat, prompt)

    def _chat(self) -> ModelChat:
        return self._kit.shared("chat:gemini", lambda: open_chat("gemini", self._kit.settings))


def handlers(kit: ProviderKit) -> Mapping[TaskType.ValueType, CallHandler]:
    """Return the handlers of the provider's task types.

    Raises:
        ValueError: There is no account at Google.
    """
    require_account(kit)
    return {
        TASK_TYPE_GENERATION: VertexGenerationHandler(kit),
        TASK_TYPE_EDITING: VertexEditingHandler(kit),
        TASK_TYPE_REFINE: VertexRefineHandler(kit),
        TASK_TYPE_LLM_INTERACTION: VertexLanguageHandler(kit),
    }


def config_of(spec: CreateTask, task: Task) -> VertexConfig:
    """Return the settings of a task, with defaults for what it leaves out."""
    config = VertexConfig()
    config.CopyFrom((task if task.HasField("provider_config") else spec).provider_config.vertex)
    apply_defaults(config)
    return config


def _strength(spec: CreateTask, task: Task) -> float:
    for held in (task.generation, spec.generation):
        if held.HasField("reference_image_strength"):
            return held.reference_image_strength
    return _DEFAULT_STRENGTH


def _fit(context: CallContext) -> Fit:
    holder = context.task if context.task.HasField("config") else context.spec
    name = members.text(holder.config, "fit", 16)
    if name is not None and name not in _FITS:
        raise members.invalid(f"config.fit must be one of {', '.join(_FITS)}.")
    return name or "contain"
