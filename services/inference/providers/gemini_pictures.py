"""Pictures by Gemini: each is drawn by one request, judged, and brought to exactly the size that was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from atelier.tasks.v1.refine_pb2 import CreateRefineTask, RefineTaskPublic
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.worker.handlers import CallContext, InputRef, Output, OutputFile
from modelkit.pictures import open_picture, over_white
from services.inference.providers import aspects
from services.inference.providers.encoded import SentPicture
from services.inference.providers.paid import Order, ProviderAnswer, answered
from services.inference.targets import target_size
from services.inference.tasktypes.pictures import save_png

if TYPE_CHECKING:
    from services.inference.providers.gemini import GeminiClient, PictureRequest
    from services.inference.providers.kit import ProviderKit

_Made = TypeVar("_Made")

BASE = "base"
RESULT = "image.png"
# A picture that is enlarged by more was drawn smaller than what was asked for, visibly.
_NOTED_GROWTH = 1.1
REFINE_PROMPT = (
    "Redraw this very picture at a higher resolution. Keep every shape, colour, texture, print, letter and face "
    "exactly where and as it is; add only the fine detail that the larger picture can show."
)
_FACES_PROMPT = "Draw the faces sharp, with the same identity and expression."


def require_account(kit: ProviderKit) -> None:
    """Refuse to serve what Gemini does without an account at Google.

    Raises:
        ValueError: There is none.
    """
    settings = kit.settings
    if not (settings.vertex_project or settings.gemini_key.get_secret_value()):
        raise ValueError("Gemini needs ATELIER_GEMINI_KEY, its file, or ATELIER_VERTEX_PROJECT")
    if settings.vertex_credentials_file is not None and not settings.vertex_credentials_file.is_file():
        raise ValueError("ATELIER_VERTEX_CREDENTIALS_FILE names no file")


class GeminiPictures:
    """Has Gemini draw, and takes the result in.

    Args:
        kit: What providers share.
    """

    def __init__(self, kit: ProviderKit) -> None:
        self._kit = kit

    async def drawn(
        self, context: CallContext, order: Order, asked: PictureRequest, finish: Callable[[Path], Awaitable[_Made]]
    ) -> _Made:
        """Have a picture drawn by one request, which may cost money.

        Args:
            context: The attempt.
            order: What the request is written down as.
            asked: The request.
            finish: Makes the result of what was drawn, a file that was judged.

        Raises:
            TaskFailed: It was not drawn.
        """
        client = await asyncio.to_thread(self._client)
        sent, drawing = context.folder / "sent", context.folder / "drawn.png"

        async def call() -> ProviderAnswer[Path]:
            await client.draw(asked, sent)
            return ProviderAnswer(sent, 200)

        async def take(answer: ProviderAnswer[Path]) -> _Made:
            await self._kit.results.picture(order.provider, answer.value, drawing)
            try:
                return await finish(drawing)
            finally:
                drawing.unlink(missing_ok=True)

        try:
            return await answered(context, call, order, take)
        finally:
            sent.unlink(missing_ok=True)

    def _client(self) -> GeminiClient:
        from services.inference.providers.gemini import GeminiClient  # noqa: PLC0415 -- two seconds, for the first task

        return self._kit.shared("gemini", lambda: GeminiClient(self._kit.settings))


def refined_refs(spec: CreateTask, task: Task) -> Sequence[InputRef]:
    """Name the picture of a REFINE task."""
    return [InputRef(BASE, task.refine.base_image_path or spec.refine.base_image_url, "image")]


def refined_base(path: Path, sheet: aspects.Sheet, side: int) -> SentPicture:
    """Return the picture of a REFINE task on its sheet, at its own size."""
    return aspects.sent(over_white(open_picture(path)), sheet, side)


def refined_size(own: tuple[int, int], asked: CreateRefineTask) -> tuple[int, int]:
    """Return the size of a REFINE task's result: its own where it is not enlarged."""
    return own if asked.HasField("upscale_enabled") and not asked.upscale_enabled else target_size(own, asked)


def asks_for_faces(asked: CreateRefineTask) -> bool:
    """Whether a REFINE task's faces are to be restored."""
    return asked.face_detail_enabled if asked.HasField("face_detail_enabled") else True


def refine_prompt(asked: CreateRefineTask, default: str | None = None) -> str:
    """Return what the model is told of a REFINE task.

    Args:
        asked: The task.
        default: What enlarging is guided by where the task does not say; words of this module where None.
    """
    told = [asked.upscale_prompt or default or REFINE_PROMPT]
    if asks_for_faces(asked):
        told.append(asked.face_detail_prompt or _FACES_PROMPT)
    return " ".join(told)


async def unchanged(path: Path, folder: Path) -> Output:
    """Return a picture of which nothing is asked as the result."""
    await asyncio.to_thread(lambda: save_png(open_picture(path), folder / RESULT))
    return picture_output(TaskResult(refine=RefineTaskPublic()))


def growth_note(grown: float) -> list[str]:
    """Say that a picture was drawn smaller than it is; nothing where it was not."""
    if grown <= _NOTED_GROWTH:
        return []
    return [f"The provider drew the picture smaller than asked for; its sides were enlarged {grown:.2f} times."]


def picture_output(result: TaskResult) -> Output:
    """Return a result whose file is the picture."""
    return Output(result, (OutputFile(RESULT, "image/png", "result_image_path"),), 0.0)
