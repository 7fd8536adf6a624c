"""Has tasks look at photos, and writes down what they find."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from uuid import UUID

from atelier.events.v1 import events_pb2
from atelier.tasks.v1 import task_pb2
from google.protobuf.message import DecodeError

from meshkit import metrics
from meshkit.bus import BusMessage
from meshkit.errors import TRANSIENT, ErrorKind, MeshError, unavailable
from meshkit.logging import get_logger
from meshkit.loops import Loop
from services.monitoring.capture.detection.domain import (
    FILE_GONE,
    FILE_REPLACED,
    FILE_TOO_LARGE,
    DetectionOutcome,
    failed,
    missed,
    outcome_of,
)
from services.monitoring.capture.detection.store import DetectionStore
from services.monitoring.capture.outages import AWAY, MOST_TRIES, Outage
from services.monitoring.capture.photos.domain import PhotoRecord
from services.monitoring.capture.watching.files import FileChangedError, is_away, passes, read_photo, reason_of

_log = get_logger(__name__)

# Ends of tasks, as core NATS tells them at once.
TASK_ENDED = tuple(f"atelier.tasks.v1.task.{what}" for what in ("completed", "failed", "cancelled"))
_INTERVAL_SECONDS = 1.0
# A task of which nothing came is asked for after so long.
_ASK_SECONDS = 2.0
# A file that the drive does not give is tried so often, after 1 s, 2 s, 4 s and so on: for four minutes. Then the photo
# is given up, so that its batch is judged, and the watcher goes on trying: what it can read is a new photo.
_MOST_READS = 10
_LONGEST_PAUSE_SECONDS = 60.0

_PHOTOS = metrics.counter("capture_photos", "Photos that were looked at, by outcome", ("outcome",))


class PhotoTasks(Protocol):
    """Tasks that look at photos (`services.monitoring.capture.detection.task_calls.DetectionTasks`)."""

    async def create(self, photo_id: UUID, content: bytes, reference: str) -> task_pb2.Task:
        """Make the task of a photo, or find that it exists."""
        ...

    async def get(self, photo_id: UUID) -> task_pb2.Task:
        """Return the task of a photo as it stands."""
        ...


class DetectionWorker:
    """Hands photos over to tasks, a bounded number at a time, and writes down what they find; safe with replicas.

    Args:
        store: The rows.
        tasks: The tasks.
        root: Root of the cameras.
        at_once: How many photos are looked at at the same time.
        most_bytes: Largest file that is handed over.
        on_detected: Called with each photo whose findings were written.
        on_missed: Called with each file whose content was out of reach, after which it may come again.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        store: DetectionStore,
        tasks: PhotoTasks,
        root: Path,
        *,
        at_once: int,
        most_bytes: int,
        on_detected: Callable[[], None] = lambda: None,
        on_missed: Callable[[bytes], None] = lambda _file: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._tasks = tasks
        self._root = root
        self._at_once = at_once
        self._most_bytes = most_bytes
        self._on_detected = on_detected
        self._on_missed = on_missed
        self._clock = clock
        # When each photo under way is asked for next; an event makes that at once.
        self._due: dict[UUID, float] = {}
        # Times that a photo met an error that may be of the photo.
        self._tries: Counter[UUID] = Counter()
        # How often a file was not given, and when it is read again.
        self._unread: dict[UUID, tuple[int, float]] = {}
        self.outage = Outage("photos")
        self._wake = asyncio.Event()
        self.loop = Loop("detection_worker", self.run_once, _INTERVAL_SECONDS, wake=self._wake)

    async def notice(self, message: BusMessage) -> None:
        """Take the news that a task has ended; most are of others."""
        if not self._due:
            return
        try:
            task_id = UUID(events_pb2.TaskStatusEvent.FromString(message.data).task_id)
        except (DecodeError, ValueError):
            return  # the task is asked for anyway
        if task_id in self._due:
            self._due[task_id] = 0.0
            self._wake.set()

    async def run_once(self) -> bool:
        """Write down what has ended, and hand over what waits; body of a loop.

        Where the tasks service or the object store is away, photos wait.

        Returns:
            Whether there is more to do at once.
        """
        return await self.outage.bridge(self._work)

    async def _work(self) -> bool:
        under_way = await self._store.under_way()
        now = self._clock()
        self._due = {one: self._due.get(one, 0.0) for one in under_way}
        due = [one for one, at in self._due.items() if at <= now]
        asked = await asyncio.gather(*(self._ask(one) for one in due), return_exceptions=True)
        for failure in asked:
            if failure is not None:
                raise failure
        room = self._at_once - len(self._due)
        if room <= 0:
            return False
        # Read one after the other: a photo may be large.
        later = [one for one, (_, at) in self._unread.items() if at > now]
        photos = await self._store.waiting(room, later)
        for photo in photos:
            await self._hand_over(photo)
        return len(photos) == room and len(self._due) < self._at_once

    async def _hand_over(self, photo: PhotoRecord) -> None:
        try:
            content = await asyncio.to_thread(read_photo, self._root, photo.file, photo.sha256, self._most_bytes)
        except FileChangedError:
            too_large = photo.size > self._most_bytes
            await self._write_unread(photo, failed(FILE_TOO_LARGE) if too_large else missed(FILE_REPLACED))
            return
        except OSError as error:
            await self._not_read(photo, error)
            return
        self._unread.pop(photo.id, None)
        try:
            task = await self._tasks.create(photo.id, content, photo.path[:255])
        except MeshError as error:
            if error.kind in AWAY:
                raise
            if error.kind is ErrorKind.CONFLICT:
                # Made before, with an answer that was lost, while the file had another name: it is asked for.
                await self._store.handed_over(photo.id)
                self._due[photo.id] = 0.0
                return
            self._tries[photo.id] += 1
            if error.kind not in TRANSIENT or self._tries[photo.id] >= MOST_TRIES:
                del self._tries[photo.id]
                await self._write(photo.id, failed(_sentence(error)))
            return
        self._tries.pop(photo.id, None)
        if (outcome := outcome_of(task)) is not None:
            await self._write(photo.id, outcome)
            return
        await self._store.handed_over(photo.id)
        self._due[photo.id] = self._clock() + _ASK_SECONDS

    async def _not_read(self, photo: PhotoRecord, error: OSError) -> None:
        """Wait for a file that cannot be read; or write that it cannot be, where that does not pass."""
        if await asyncio.to_thread(is_away, self._root):
            # A drive that comes back has them all.
            raise unavailable("The folder of the cameras is not there", reason="CAMERA_ROOT_AWAY") from None
        if isinstance(error, FileNotFoundError):
            # Not where the watcher has found it under another name meanwhile.
            await self._write_unread(photo, missed(FILE_GONE), file=photo.file)
            return
        if not passes(error):
            await self._write_unread(photo, failed(f"The file cannot be read: {reason_of(error)}."))
            return
        reads = self._unread.get(photo.id, (0, 0.0))[0] + 1
        if reads == 1:
            _log.warning("photo_unread", photo_id=str(photo.id), path=photo.path, cause=reason_of(error))
        if reads < _MOST_READS:
            self._unread[photo.id] = reads, self._clock() + min(2.0 ** (reads - 1), _LONGEST_PAUSE_SECONDS)
            return
        await self._write_unread(photo, missed(f"The file cannot be read: {reason_of(error)}."))

    async def _write_unread(self, photo: PhotoRecord, outcome: DetectionOutcome, *, file: bytes | None = None) -> None:
        self._unread.pop(photo.id, None)
        if await self._write(photo.id, outcome, file=file) and outcome.missed:
            self._on_missed(photo.file)

    async def _ask(self, photo_id: UUID) -> None:
        """Ask for the task of a photo, and write down what it found if it has ended."""
        self._due[photo_id] = self._clock() + _ASK_SECONDS
        try:
            outcome = outcome_of(await self._tasks.get(photo_id))
        except MeshError as error:
            if error.kind in TRANSIENT - AWAY:
                # It is of this task alone, which is asked for again; the others go on.
                _log.warning("photo_task_unknown", photo_id=str(photo_id), reason=error.reason, cause=error.message)
                return
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            outcome = failed("The task that was to look at it is there no more.")
        if outcome is not None:
            await self._write(photo_id, outcome)
            self._due.pop(photo_id, None)

    async def _write(self, photo_id: UUID, outcome: DetectionOutcome, *, file: bytes | None = None) -> bool:
        """Write what became of a photo; whether it was written now."""
        if not await self._store.settle(photo_id, outcome, file=file):
            return False
        word = "detected" if outcome.error is None else "failed"
        _PHOTOS.labels(word).inc()
        if outcome.error is None:
            _log.info("photo_detected", photo_id=str(photo_id), found=len(outcome.detections))
            self._on_detected()
        else:
            _log.warning("photo_not_detected", photo_id=str(photo_id), error=outcome.error)
        return True


def _sentence(error: MeshError) -> str:
    return " ".join(one.message for one in error.violations) or error.message
