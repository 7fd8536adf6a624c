"""Have the child work on a dataset's pictures, and take out those that it dies of."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshkit.children import environment_without_secrets
from meshkit.last_words import LastWords
from meshkit.logging import get_logger
from services.training.trainer.dataset.domain import MOST_ENLARGED, DatasetFailed, DatasetRequest, Stage

_log = get_logger(__name__)

_MEMORY_BYTES = 6 << 30
_SECONDS = 180.0  # of one picture: several networks may look at it
_MOST_LOSSES = 3
_LINE_BYTES = 1 << 20
_LACKING = ("ModuleNotFoundError:", "ImportError:")

Done = Callable[[Stage, int, int], Awaitable[None]]
"""Takes the stage, the pictures that it is done with, and all that it has."""


@dataclass(frozen=True, slots=True)
class BroughtPicture:
    """A picture on the local disk, judged.

    Attributes:
        index: Its place among the sources.
        name: What it is called.
        file: The file.
    """

    index: int
    name: str
    file: Path


@dataclass(slots=True)
class PreparedPictures:
    """What became of the pictures.

    Attributes:
        made: Facts of each that is prepared, by index: the original's size, and what was written of it.
        rejected: Reasons, by index.
    """

    made: dict[int, dict[str, Any]] = field(default_factory=dict)
    rejected: dict[int, str] = field(default_factory=dict)


class PictureChildLostError(Exception):
    """The child ended early.

    Args:
        index: The picture that it worked on; None where it had begun none.
        cause: Why, as what is said of that picture.
        last_error: What the child has told of it itself; empty for nothing.
    """

    def __init__(self, index: int | None, cause: str, last_error: str = "") -> None:
        super().__init__(cause)
        self.index = index
        self.last_error = last_error

    @property
    def concerns_a_picture(self) -> bool:
        """Whether it worked on a picture, and does not lack a package, which no picture is to blame for."""
        return self.index is not None and not self.last_error.startswith(_LACKING)


class PictureWork:
    """Runs the child.

    Args:
        threads: Processor threads of a network; 0 leaves it to each library.
        memory_bytes: Memory that the child may map.
        seconds: How long one picture may take.
    """

    def __init__(self, threads: int = 0, memory_bytes: int = _MEMORY_BYTES, seconds: float = _SECONDS) -> None:
        self._threads = threads
        self._memory = memory_bytes
        self._seconds = seconds

    async def prepare(
        self, request: DatasetRequest, pictures: Sequence[BroughtPicture], folder: Path, work: Path, done: Done
    ) -> PreparedPictures:
        """Judge pictures, transform them, and write them into the dataset's folder.

        Args:
            request: What is asked of the dataset.
            pictures: The pictures.
            folder: The dataset's folder.
            work: A folder for the job.
            done: Hears of every picture.

        Raises:
            DatasetFailed: The child cannot work here.
        """
        lost: dict[int, str] = {}
        while True:
            left = [one for one in pictures if one.index not in lost]
            if not left:
                return PreparedPictures(rejected=lost)
            job = {
                "work": "prepare",
                "folder": str(folder),
                "threads": self._threads,
                "resolution": request.resolution,
                "multiple": request.multiple,
                "max_side": request.longest,
                "most_enlarged": MOST_ENLARGED,
                "transforms": [one.as_json() for one in request.transforms],
                "masks": request.masks,
                "looks": request.strategy == "auto",
                "seed": request.seed,
                "pictures": [{"index": one.index, "name": one.name, "file": str(one.file)} for one in left],
            }
            try:
                found = await self._prepared(job, work, len(left), done)
            except PictureChildLostError as loss:
                if not loss.concerns_a_picture:
                    raise DatasetFailed("The pictures could not be worked on: this worker's log tells why.") from None
                if loss.index is None or len(lost) == _MOST_LOSSES:
                    raise DatasetFailed("The pictures could not be worked on.") from None
                lost[loss.index] = f"cannot be worked on: {loss}"
                continue
            found.rejected |= lost
            return found

    async def describe(self, looks: Mapping[int, Path], work: Path, done: Done) -> dict[int, str]:
        """Return what prepared pictures show, by index; pictures that cannot be described are absent.

        Args:
            looks: The pictures as they are trained on, large.
            work: A folder for the job.
            done: Hears of every picture.
        """
        told: dict[int, str] = {}
        left = dict(looks)
        for _ in range(_MOST_LOSSES + 1):
            pictures = [{"index": index, "file": str(file)} for index, file in left.items() if index not in told]
            job = {"work": "describe", "threads": self._threads, "pictures": pictures}
            try:
                async for event in self._events(job, work):
                    if event["event"] == "described":
                        told[event["index"]] = event["text"]
                        await done("captioning", len(told), len(looks))
                break
            except PictureChildLostError as loss:
                if loss.index is None or not loss.concerns_a_picture:
                    break
                left.pop(loss.index)
        return told

    async def _prepared(self, job: dict[str, Any], work: Path, total: int, done: Done) -> PreparedPictures:
        found = PreparedPictures()
        counts: dict[str, int] = {"validating": 0, "transforming": 0}
        async for event in self._events(job, work):
            if event["event"] == "reject":
                found.rejected[event["index"]] = event["reason"]
            elif event["event"] == "made":
                found.made[event["index"]] = event
            elif event["event"] == "done":
                stage: Stage = event["stage"]
                counts[stage] += 1
                of = total if stage == "validating" else total - len(found.rejected.keys() - found.made.keys())
                await done(stage, counts[stage], max(of, counts[stage]))
        return found

    async def _events(self, job: dict[str, Any], work: Path) -> AsyncIterator[dict[str, Any]]:
        """Yield what the child tells.

        Raises:
            PictureChildLostError: It ended early.
            DatasetFailed: It cannot work here.
        """
        file = work / "job.json"
        await asyncio.to_thread(file.write_text, json.dumps(job), "utf-8")
        words = await LastWords.open(pass_on=False)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "services.training.trainer.dataset.child", str(file)),
                *("--parent", str(os.getpid()), "--memory", str(self._memory)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=words.fd,
                env=environment_without_secrets(),
                start_new_session=True,  # a Ctrl-C in the terminal must reach the parent alone
                limit=_LINE_BYTES,
            )
        finally:
            words.given()
        assert process.stdout is not None, "it is piped"
        index: int | None = None
        try:
            while True:
                try:
                    async with asyncio.timeout(self._seconds):
                        line = await process.stdout.readline()
                except TimeoutError:
                    raise PictureChildLostError(index, "it takes too long") from None
                if not line:
                    break
                event: dict[str, Any] = json.loads(line)
                if event["event"] == "failed":
                    raise DatasetFailed(event["message"])
                if event["event"] == "begun":
                    index = event["index"]
                yield event
            if await process.wait() != 0:
                cause = "it is damaged, or needs too much memory"
                raise PictureChildLostError(index, cause, await words.ended())
        except PictureChildLostError as loss:
            cause = str(loss) if loss.concerns_a_picture else "the process cannot work here"
            _log.warning(
                "dataset_child_lost",
                picture=loss.index,
                cause=cause,
                status=process.returncode,
                last_error=loss.last_error,
            )
            raise
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            await words.ended()
