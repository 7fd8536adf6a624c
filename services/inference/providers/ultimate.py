"""The SARTIQ_ULTIMATE pipelines over a provider that edits pictures: each part is redrawn by a request of its own.

The pipelines are those that the device executes (`services.inference.tasktypes`); they run on a thread, and ask the
provider through the worker's loop. Each request is named by its part and attempt, written down and sent once, as any
other (`paid`). What comes is compared with what was there, and drawn again where it differs too much.
"""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_FAL_STANDARD, PROVIDER_TYPE_VERTEX, ProviderType, TaskType
from atelier.tasks.v1.phase_pb2 import TASK_PHASE_RUNNING, TaskPhase
from atelier.tasks.v1.service_requests_pb2 import ServiceRequest

from meshkit.catalog import PROVIDERS, provider_numbered
from meshkit.worker.handlers import CallContext, Output, TaskCancelled
from modelkit.errors import ModelError
from modelkit.pictures import framed, open_picture, over_white
from services.inference.providers import aspects
from services.inference.providers.encoded import encoded
from services.inference.providers.fal_jobs import FalJobs, first_url
from services.inference.providers.fal_queue import NAME as FAL
from services.inference.providers.gemini_pictures import GeminiPictures, require_account
from services.inference.providers.paid import Order
from services.inference.tasktypes.failures import explained

if TYPE_CHECKING:
    from PIL import Image

    from services.inference.providers.kit import ProviderKit

_END_SECONDS = 4.0  # of the five that a cancelled handler has
_STEPS = 100
_REFERENCE_SIDE = 1536
_STRETCH = 0.03
# Smaller parts are enlarged: a pixel of what is padded around one would be many of what is drawn.
_LEAST_SIDE = 512
_TEMPERATURE, _TOP_P = 0.4, 0.95
SYSTEM = (
    "You retouch photographs for fashion. You reproduce what you are given and invent nothing: no person, garment, "
    "letter or object appears, disappears, moves or changes its colour. Keep the framing exactly."
)


@dataclass(frozen=True, slots=True)
class EditRequest:
    """A part that is to be redrawn.

    Attributes:
        operation: Names the request within its task.
        prompt: What to do.
        pictures: The part, RGB, and further pictures that it is redrawn by.
        side: Longer side in pixels that the drawing is to have.
    """

    operation: str
    prompt: str
    pictures: Sequence[Image.Image]
    side: int


class PictureEditor(Protocol):
    """A provider that edits pictures."""

    @property
    def model(self) -> str:
        """Name of its model or application."""
        ...

    async def edit(self, context: CallContext, asked: EditRequest) -> Image.Image:
        """Have a part redrawn, by one request; returns RGB of any size.

        Raises:
            TaskFailed: It was not.
        """
        ...


class GeminiEditor:
    """Has Gemini edit, as VERTEX does.

    Args:
        kit: What providers share.
        provider_type: The pipeline.
        task_type: The type that it executes.
    """

    def __init__(self, kit: ProviderKit, provider_type: ProviderType.ValueType, task_type: TaskType.ValueType) -> None:
        self._kit = kit
        self._provider_type = provider_type
        self._task_type = task_type
        self._pictures = GeminiPictures(kit)
        self.model = kit.settings.gemini_image_model

    async def edit(self, context: CallContext, asked: EditRequest) -> Image.Image:
        """Have a part redrawn."""
        from services.inference.providers.gemini import NAME, PictureRequest  # noqa: PLC0415 -- two seconds

        part, *others = _enlarged(asked.pictures[0]), *asked.pictures[1:]
        sheet = aspects.Sheet.around(*part.size)
        image_size = aspects.image_size_for(asked.side, asked.side)
        pictures = await asyncio.to_thread(
            lambda: [
                aspects.sent(part, sheet, aspects.SIDES[image_size]),
                *(encoded(other, _REFERENCE_SIDE) for other in others),
            ]
        )
        order = Order(self._provider_type, NAME, self.model, asked.operation, self._kit.seconds(self._task_type))
        request = PictureRequest(
            model=self.model,
            prompt=asked.prompt,
            pictures=pictures,
            system=SYSTEM,
            aspect_ratio=sheet.aspect,
            image_size=image_size,
            temperature=_TEMPERATURE,
            top_p=_TOP_P,
        )

        async def finish(drawing: Path) -> Image.Image:
            return await asyncio.to_thread(lambda: sheet.cut(over_white(open_picture(drawing))))

        return await self._pictures.drawn(context, order, request, finish)


class FalEditor:
    """Has an application of fal edit.

    Args:
        kit: What providers share.
        provider_type: The pipeline.
        task_type: The type that it executes.
    """

    def __init__(self, kit: ProviderKit, provider_type: ProviderType.ValueType, task_type: TaskType.ValueType) -> None:
        self._kit = kit
        self._jobs = FalJobs(kit, provider_type)
        self._task_type = task_type
        self.model = kit.settings.ultimate_fal_app

    async def edit(self, context: CallContext, asked: EditRequest) -> Image.Image:
        """Have a part redrawn."""
        part = asked.pictures[0]
        scale = asked.side / max(part.size)
        size = (max(1, round(part.width * scale)), max(1, round(part.height * scale)))
        images = await asyncio.to_thread(lambda: [_data_url(each, asked.side) for each in asked.pictures])
        arguments = {
            "prompt": f"{asked.prompt} {SYSTEM}",
            # Applications of one picture read the first name, those of several the second.
            "image_url": images[0],
            "image_urls": images,
            "image_size": {"width": size[0], "height": size[1]},
            "num_images": 1,
            "output_format": "png",
        }
        drawing = context.folder / "drawn.png"

        async def finish(answer: dict[str, Any]) -> Image.Image:
            await self._kit.results.picture(FAL, first_url(answer), drawing)
            made = await asyncio.to_thread(lambda: over_white(open_picture(drawing)))
            drawing.unlink(missing_ok=True)
            return made

        return await self._jobs.ask(context, self._task_type, self.model, arguments, finish, operation=asked.operation)


def open_editor(
    kit: ProviderKit, provider_type: ProviderType.ValueType, task_type: TaskType.ValueType
) -> PictureEditor:
    """Return who redraws parts for a pipeline.

    Raises:
        ValueError: The device does, or there is no account at who does.
    """
    editor = PROVIDERS[kit.settings.ultimate_editor].number
    if editor == PROVIDER_TYPE_VERTEX:
        require_account(kit)
        return GeminiEditor(kit, provider_type, task_type)
    if editor == PROVIDER_TYPE_FAL_STANDARD:
        return FalEditor(kit, provider_type, task_type)
    pipeline = provider_numbered(provider_type).name
    raise ValueError(f"{pipeline} is executed by the device; ATELIER_ULTIMATE_EDITOR names another one to be called")


class EditedPicture:
    """A task whose pipeline runs on a thread, and has parts redrawn through the worker's loop.

    Args:
        context: The attempt.
        editor: Who redraws.
    """

    def __init__(self, context: CallContext, editor: PictureEditor) -> None:
        self._context = context
        self._editor = editor
        self._loop = asyncio.get_running_loop()
        self._asked: set[asyncio.Task[Any]] = set()
        self._stopped = False
        self.model = editor.model

    async def run(self, work: Callable[[], Output]) -> Output:
        """Run the pipeline; one that is cancelled asks for nothing more, and what it has asked for is called off.

        Raises:
            TaskFailed: It did not make a result.
        """
        thread = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(thread)
        except ModelError as error:
            raise explained(error) from error
        except asyncio.CancelledError:
            self._stopped = True
            for asked in tuple(self._asked):
                asked.cancel()
            await asyncio.wait([thread, *self._asked], timeout=_END_SECONDS)
            thread.add_done_callback(_forget)
            raise

    def done(self, share: float) -> None:
        """Take the share of the work that is done; called by the pipeline's threads.

        Raises:
            TaskCancelled: The attempt is over.
        """
        if self._stopped:
            raise TaskCancelled
        self._loop.call_soon_threadsafe(self._context.progress, round(share * _STEPS), _STEPS)

    def edited(self, asked: EditRequest) -> Image.Image:
        """Have a part redrawn, from one of the pipeline's threads; returns RGB of the part's aspect.

        Raises:
            TaskFailed: It was not.
            TaskCancelled: The attempt is over.
        """
        if self._stopped:
            raise TaskCancelled
        try:
            made = asyncio.run_coroutine_threadsafe(self._ask(asked), self._loop).result()
        except concurrent.futures.CancelledError:
            raise TaskCancelled from None
        return _of_aspect(made, asked.pictures[0].size)

    async def _ask(self, asked: EditRequest) -> Image.Image:
        if self._stopped:
            raise TaskCancelled
        task = asyncio.current_task()
        assert task is not None  # the loop runs nothing else
        self._asked.add(task)
        try:
            return await self._editor.edit(PartContext(self._context, asked.operation), asked)
        finally:
            self._asked.discard(task)


class PartContext:
    """The attempt as a request for one part sees it: a folder of its own, and no say in the task's progress.

    Args:
        context: The attempt.
        name: Name of the folder.
    """

    def __init__(self, context: CallContext, name: str) -> None:
        self._context = context
        self._name = name
        self.job_id = context.job_id
        self.spec = context.spec
        self.task = context.task
        self.inputs = context.inputs
        self.refused_inputs = context.refused_inputs

    @property
    def folder(self) -> Path:
        """Folder of the part, for its files."""
        folder = self._context.folder / self._name
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def open_requests(self) -> Sequence[ServiceRequest]:
        """What earlier attempts have asked."""
        return self._context.open_requests

    @property
    def called_off(self) -> bool:
        """Whether the provider is to be told to stop."""
        return self._context.called_off

    async def note(self, request: ServiceRequest) -> None:
        """Write a request down as it stands."""
        await self._context.note(request)

    def progress(self, step: int, total: int, preview: bytes | None = None, *, text: str | None = None) -> None:
        """Report nothing: a part's share is told by the pipeline."""

    def begins(self, phase: TaskPhase.ValueType, *, position: int | None = None) -> None:  # noqa: ARG002 -- the protocol's
        """Report that the task runs: others of its parts do, whatever this one waits for."""
        self._context.begins(TASK_PHASE_RUNNING)

    def upscaling(self) -> None:
        """Report nothing."""

    def cancelled(self) -> bool:
        """Tell whether the attempt is to stop."""
        return self._context.cancelled()


def _enlarged(part: Image.Image) -> Image.Image:
    scale = _LEAST_SIDE / max(part.size)
    return part if scale <= 1 else part.resize((math.ceil(part.width * scale), math.ceil(part.height * scale)))


def _of_aspect(made: Image.Image, part: tuple[int, int]) -> Image.Image:
    """Return what was drawn, cut evenly where its aspect is another one; a difference of rounding is stretched away."""
    aspect = part[0] / part[1]
    if abs(math.log(made.width / made.height / aspect)) <= _STRETCH:
        return made
    width = min(made.width, round(made.height * aspect))
    return framed(made, max(1, width), max(1, round(width / aspect)), "cover")


def _forget(thread: asyncio.Future[Output]) -> None:
    """Look at how a thread has ended that nobody waits for any more, so that it is not told as forgotten."""
    if not thread.cancelled():
        thread.exception()


def _data_url(image: Image.Image, side: int) -> str:
    sent = encoded(image, side)
    return f"data:{sent.content_type};base64,{base64.b64encode(sent.data).decode('ascii')}"
