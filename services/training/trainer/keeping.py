"""Stores what a training has made, in the order in which it was made, and tells the training service of it.

The order matters: a state says which saves and samples are done, so these are stored before it. A state that waits
while a newer one comes is left out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_RESOURCE

from meshkit.errors import TRANSIENT, MeshError
from meshkit.logging import get_logger
from meshkit.objects import ObjectInfo, ObjectStore
from meshkit.worker.handlers import TaskFailed
from meshkit.worker.pacing import Pauses
from services.training.trainer.service_calls import AttemptLost

_log = get_logger(__name__)

OCTETS = "application/octet-stream"
_SETTLE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class WholeFile:
    """A file to store.

    Attributes:
        local: The file.
        path: Its path in the store.
        content_type: Its media type.
    """

    local: Path
    path: str
    content_type: str = OCTETS


@dataclass(frozen=True, slots=True)
class WholeThing:
    """Files that belong together: a state, a save, a sample.

    Attributes:
        files: The files.
        note: Tells the training service of them, once all are stored.
        newest_only: Whether one that waits is left out when the next of its kind comes.
        remove: Whether the files leave the disk then.
    """

    files: Sequence[WholeFile]
    note: Callable[[], Awaitable[None]]
    newest_only: bool = False
    remove: bool = True


class Keeping:
    """Stores things one after the other.

    Args:
        objects: The store.
        tenant: Whose objects they are.
        pauses: Waits between tries.
    """

    def __init__(self, objects: ObjectStore, tenant: str, pauses: Pauses | None = None) -> None:
        self._objects = objects
        self._tenant = tenant
        self._pauses = pauses or Pauses()
        self._waiting: deque[WholeThing] = deque()
        self._fresh = asyncio.Event()
        self._closed = False
        self._puts: list[tuple[str, asyncio.Future[ObjectInfo]]] = []  # of the thing that is being stored
        self._noting = False

    def add(self, thing: WholeThing) -> None:
        """Have a thing stored after those that wait."""
        if thing.newest_only:
            for older in [one for one in self._waiting if one.newest_only]:
                self._waiting.remove(older)
                _removed(older)
        self._waiting.append(thing)
        self._fresh.set()

    def close(self) -> None:
        """Let `run` end once nothing waits."""
        self._closed = True
        self._fresh.set()

    async def run(self) -> None:
        """Store what comes, until it is closed.

        Raises:
            AttemptLost: The training is another attempt's, or has ended.
            TaskFailed: The store does not take an object.
        """
        while True:
            await self._fresh.wait()
            while self._waiting:
                await self.store(self._waiting.popleft())
            if self._closed:
                return
            self._fresh.clear()

    async def store(self, thing: WholeThing) -> None:
        """Store a thing and tell of it; raises as `run` does."""
        for file in thing.files:
            await self.put(file)
        await self.told(thing.note())
        _removed(thing)

    async def told(self, note: Awaitable[None]) -> None:
        """Await a note of all that was stored since the last one: from then on it is the training's."""
        self._noting = True
        try:
            await note
        except AttemptLost:
            self._noting = False
            raise
        self._puts.clear()
        self._noting = False

    async def discard(self, *, ended: bool) -> None:
        """Delete what was stored and never told of.

        Args:
            ended: Whether the training has: what the service may have been told of is nobody's either then.
        """
        if self._noting and not ended:
            return
        puts, self._puts = self._puts, []
        if not puts:
            return
        await asyncio.wait([put for _, put in puts], timeout=_SETTLE_SECONDS)
        for path in dict.fromkeys(path for path, _ in puts):
            try:
                await self._objects.delete(self._tenant, path)
            except MeshError as error:
                _log.warning("training_object_left", path=path, kind=error.kind.value)

    async def put(self, file: WholeFile) -> None:
        """Store a file; it is the training's once a note of it is taken.

        Raises:
            TaskFailed: The store does not take it.
        """
        failures = 0
        while True:
            # A write that has begun cannot be stopped: where the caller is cancelled it goes on, and `discard` waits.
            put = asyncio.ensure_future(self._objects.put(self._tenant, file.path, file.local, file.content_type))
            self._puts.append((file.path, put))
            try:
                await asyncio.shield(put)
            except MeshError as error:
                if error.kind not in TRANSIENT:
                    _log.warning("training_upload_refused", path=file.path, kind=error.kind.value)
                    message = "A file of the training could not be stored."
                    raise TaskFailed(message, ERROR_CATEGORY_RESOURCE, retryable=True) from error
                failures += 1
                _log.warning("training_upload_failed", path=file.path, kind=error.kind.value, failures=failures)
                await self._pauses.after(failures)
            else:
                return


def _removed(thing: WholeThing) -> None:
    """Give the disk back what a thing took."""
    if thing.remove:
        for file in thing.files:
            file.local.unlink(missing_ok=True)
