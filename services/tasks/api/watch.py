"""Follow one task: its states from the database, with NATS telling when to read them, and its progress as it comes.

An end that this process committed is sent to its watchers at once, as it was committed and without reading the row; its
event follows over the relay. No connection is held while a watcher waits. Without NATS the row is read every second;
with it, now and then, because notices may be lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import UUID

from atelier.events.v1 import events_pb2
from atelier.tasks.v1 import phase_pb2, tasks_service_pb2
from google.protobuf.message import DecodeError

from meshkit.access import Caller
from meshkit.bus import Bus, BusMessage, BusSubscription
from services.tasks.convert import to_task
from services.tasks.domain import TERMINAL, TaskRecord, TaskStatus
from services.tasks.errors import task_not_found
from services.tasks.events import EVERY_SUBJECT, PROGRESS_SUBJECT
from services.tasks.media import ShowTask
from services.tasks.store import TaskStore

BLIND_SECONDS = 1.0
SEEING_SECONDS = 5.0
_PROGRESS_KEPT = 16


@dataclass(eq=False, slots=True)
class _TaskWatcher:
    changed: asyncio.Event
    # The row of a task that has ended does not change its state again: it need not be read to be told of.
    ended: TaskRecord | None = None
    # A follower that does not read must not fill the memory: what is left out is overtaken anyway.
    progress: deque[events_pb2.TaskProgressEvent] = field(default_factory=lambda: deque(maxlen=_PROGRESS_KEPT))

    async def on_progress(self, message: BusMessage) -> None:
        self.progress.append(events_pb2.TaskProgressEvent.FromString(message.data))
        self.changed.set()


class TaskWatchers:
    """Everyone who follows a task in this process.

    Args:
        store: The database.
        bus: The bus.
        show: Makes of a row what callers see.
    """

    def __init__(self, store: TaskStore, bus: Bus, show: ShowTask = to_task) -> None:
        self._store = store
        self._show = show
        self._bus = bus
        self._watchers: dict[str, set[_TaskWatcher]] = {}
        self._events: BusSubscription | None = None
        self._listening = asyncio.Lock()

    async def watch(
        self, task_id: UUID, caller: Caller, after_version: int
    ) -> AsyncIterator[tasks_service_pb2.WatchTaskResponse]:
        """Follow a task until it ends.

        Args:
            task_id: The task.
            caller: Who asks.
            after_version: States up to this one are not sent again.

        Raises:
            MeshError: `NOT_FOUND`, also where the task is deleted meanwhile.
        """
        record = caller.seen(await self._store.get(task_id), task_id, task_not_found)
        watcher = _TaskWatcher(asyncio.Event())
        key = str(task_id)
        self._watchers.setdefault(key, set()).add(watcher)
        subscription = await self._bus.subscribe(f"{PROGRESS_SUBJECT}.{task_id}", watcher.on_progress)
        try:
            await self._listen()
            # What changed before the listening began is in the row now.
            record = await self._again(task_id, record)
            sent_version, sent_progress, sent_ahead = after_version, -1.0, -1
            sent_phase = phase_pb2.TASK_PHASE_UNSPECIFIED
            while True:
                final = record.state in TERMINAL
                ahead = await self._store.ahead(record) if record.state is TaskStatus.PENDING else sent_ahead
                moved = record.progress > sent_progress >= 0 or ahead != sent_ahead >= 0
                sent_ahead = ahead
                if record.version > sent_version or final or moved:
                    sent_version, sent_progress = record.version, record.progress
                    yield self._state(record, ahead)
                if final:
                    return
                await self._wait(watcher)
                newest = max((event.attempt for event in watcher.progress), default=0)
                if newest > record.attempt:
                    # An attempt has begun whose row was not read yet: the task's state goes ahead of its progress.
                    record = await self._again(task_id, record)
                    if record.attempt >= newest:
                        continue
                while watcher.progress:
                    event = watcher.progress.popleft()
                    # What an attempt is at is told also where an earlier one had come further.
                    news = event.phase != sent_phase or event.HasField("queue_position")
                    if event.attempt == record.attempt and (event.progress >= sent_progress or news):
                        sent_progress, sent_phase = max(event.progress, sent_progress), event.phase
                        yield _progress(record, event, sent_progress)
                watcher.changed.clear()
                record = watcher.ended or await self._again(task_id, record)
        finally:
            self._watchers[key].discard(watcher)
            if not self._watchers[key]:
                del self._watchers[key]
            await subscription.unsubscribe()
            await self._listen()

    def changed(self, record: TaskRecord) -> None:
        """Report a task's row as this process has committed it."""
        for watcher in self._watchers.get(str(record.id), ()):
            if record.state in TERMINAL:
                watcher.ended = record
            watcher.changed.set()

    def _state(self, record: TaskRecord, ahead: int) -> tasks_service_pb2.WatchTaskResponse:
        response = tasks_service_pb2.WatchTaskResponse(task=self._show(record), final=record.state in TERMINAL)
        if record.state is TaskStatus.PENDING:
            response.phase, response.tasks_ahead = phase_pb2.TASK_PHASE_QUEUED, ahead
        return response

    async def _listen(self) -> None:
        """Consume events as long as anyone follows a task, and no longer: they are many."""
        async with self._listening:
            if self._watchers and self._events is None:
                self._events = await self._bus.subscribe(EVERY_SUBJECT, self._on_event)
            elif not self._watchers and self._events is not None:
                subscription, self._events = self._events, None
                await subscription.unsubscribe()

    async def _wait(self, watcher: _TaskWatcher) -> None:
        try:
            async with asyncio.timeout(SEEING_SECONDS if self._bus.connected else BLIND_SECONDS):
                await watcher.changed.wait()
        except TimeoutError:
            return

    async def _again(self, task_id: UUID, previous: TaskRecord) -> TaskRecord:
        record = await self._store.get(task_id)
        if record is None or record.tenant != previous.tenant:
            raise task_not_found(task_id)
        return record

    async def _on_event(self, message: BusMessage) -> None:
        # Both documented events carry the task's id in the same field.
        event = events_pb2.TaskStatusEvent()
        try:
            event.ParseFromString(message.data)
        except DecodeError:
            return
        for watcher in self._watchers.get(event.task_id, ()):
            watcher.changed.set()


def _progress(
    record: TaskRecord, event: events_pb2.TaskProgressEvent, progress: float
) -> tasks_service_pb2.WatchTaskResponse:
    response = tasks_service_pb2.WatchTaskResponse(task=to_task(record), preview=event.preview)
    response.task.progress = progress
    if event.HasField("step"):
        response.step = event.step
    if event.HasField("total_steps"):
        response.total_steps = event.total_steps
    if event.HasField("phase"):
        response.phase = event.phase
    if event.HasField("queue_position"):
        response.queue_position = event.queue_position
    if event.text:
        response.text = event.text
    return response
