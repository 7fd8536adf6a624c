"""EXPERIMENTAL_FAL: any application with any parameters.

`fal_parameters` win over `additional_static_params`. Media of the answer, the first few, are copied under the task's
prefix, for fal deletes its own after a while; `result_url` is the address of the first, or that of the request's answer
where the answer has no media.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atelier.tasks.v1.enums_pb2 import TASK_TYPE_EXPERIMENTAL_FAL
from atelier.tasks.v1.experimental_fal_pb2 import ExperimentalFalTaskPublic
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.worker.handlers import CallContext, InputRef, Output, OutputFile
from services.inference.providers.fal_jobs import OURS, FalJobs, media_urls, settings_of, static_arguments
from services.inference.providers.fal_queue import NAME
from services.inference.providers.plain_json import members_of

_MOST_FILES = 16
_ANSWER = "answer.json"
_KINDS = ("image/", "video/", "audio/")
_SUFFIXES = {"image/jpeg": ".jpg", "image/webp": ".webp", "image/avif": ".avif", "audio/mpeg": ".mp3"}
_UNTYPED = "application/octet-stream"


class FalExperimentalHandler:
    """Has the application that an EXPERIMENTAL_FAL task names do what it does."""

    def __init__(self, jobs: FalJobs) -> None:
        self._jobs = jobs

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:  # noqa: ARG002 -- the protocol's signature
        """Name nothing: what parameters name is between the caller and fal."""
        return ()

    async def run(self, context: CallContext) -> Output:
        """Call the application."""
        began = time.monotonic()
        application, arguments = experimental_call(context.spec, context.task)

        async def finish(answer: dict[str, Any]) -> Output:
            urls = media_urls(answer)
            files = [await self._kept(context.folder, index, url) for index, url in enumerate(urls[:_MOST_FILES])]
            # The answer itself is kept as well: what an application says is not always a file.
            await asyncio.to_thread((context.folder / _ANSWER).write_text, json.dumps(answer), encoding="utf-8")
            files.append(OutputFile(_ANSWER, "application/json", None))
            shown = next((url for url in urls if url.startswith(("http://", "https://"))), "")
            result = ExperimentalFalTaskPublic(result_url=shown) if shown else ExperimentalFalTaskPublic()
            return Output(TaskResult(experimental_fal=result), tuple(files), time.monotonic() - began)

        return await self._jobs.ask(context, TASK_TYPE_EXPERIMENTAL_FAL, application, arguments, finish)

    async def _kept(self, folder: Path, index: int, url: str) -> OutputFile:
        """Copy a file of the answer; a picture is one that decodes."""
        results = self._jobs.kit.results
        content = await results.fetch(NAME, url)
        kind = content.content_type
        if kind in ("", _UNTYPED):
            kind = mimetypes.guess_type(url.partition("?")[0])[0] or _UNTYPED
        if not kind.startswith(_KINDS):
            kind = _UNTYPED  # nothing that a browser would run
        name = f"result-{index}{_SUFFIXES.get(kind) or mimetypes.guess_extension(kind) or '.bin'}"
        if kind.startswith("image/"):
            await results.judge(NAME, content.data)
        await asyncio.to_thread((folder / name).write_bytes, content.data)
        return OutputFile(name, kind, None)


def experimental_call(spec: CreateTask, task: Task) -> tuple[str, Mapping[str, Any]]:
    """Return the application of a task, and what it is given."""
    current = task.experimental_fal if task.WhichOneof("detail") is not None else spec.experimental_fal
    settings = settings_of(spec, task).fal_standard
    own = members_of(current.fal_parameters, without=OURS)
    return current.fal_app_id or settings.fal_app_id, {**static_arguments(settings), **own}
