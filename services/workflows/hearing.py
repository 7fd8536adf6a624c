"""Hears how tasks ended: at once by core NATS, for certain by JetStream, and by asking where news holds no task.

All ends of one workflow that arrive while it is being decided upon are decided upon together. Who hears an end twice
decides nothing twice: a step keeps the version of its task that was last heard of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from atelier.events.v1 import events_pb2
from atelier.tasks.v1 import task_pb2
from google.protobuf.message import DecodeError

from meshkit.bus import Message
from meshkit.db import DatabaseUnavailableError
from meshkit.errors import MeshError
from meshkit.logging import get_logger
from meshkit.loops import cancel
from services.workflows.domain import StepRecord
from services.workflows.store import Store

_log = get_logger(__name__)

Tell = Callable[[UUID, Sequence[task_pb2.Task]], Awaitable[object]]
Ask = Callable[[StepRecord, str], Awaitable[None]]
# Below the number of connections: callers' requests must find one.
_WORKFLOWS_AT_ONCE = 6


@dataclass(frozen=True, slots=True)
class _Waiting:
    task: task_pb2.Task
    told: asyncio.Future[None]


class Hearing:
    """The ears of the service.

    Args:
        store: The database.
        tell: Decides upon a workflow of which these tasks ended.
        ask: Asks for a step's task, in the name of its tenant, and decides upon its workflow where it ended.
    """

    def __init__(self, store: Store, tell: Tell, ask: Ask) -> None:
        self._store = store
        self._tell = tell
        self._ask = ask
        self._gate = asyncio.Semaphore(_WORKFLOWS_AT_ONCE)
        self._waiting: dict[UUID, list[_Waiting]] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Ends what is under way; JetStream tells again what was not acknowledged."""
        await cancel(self._running)

    async def notice(self, message: Message) -> None:
        """A task ended, says tasks itself; returns at once."""
        event = _event(message)
        if event is not None and event.HasField("task"):
            self._put(event.task).add_done_callback(_note_failure)

    async def batch(self, messages: Sequence[Message]) -> None:
        """Tasks ended, says JetStream; most of it was heard before.

        Raises:
            MeshError: Something could not be decided upon now; the messages must come again.
        """
        told = [(event, message) for message in messages if (event := _event(message)) is not None]
        versions: dict[UUID, int] = {}
        ended: dict[UUID, tuple[events_pb2.TaskStatusEvent, str]] = {}
        for event, message in told:
            ident, version = UUID(event.task_id), int(message.headers.get("Atelier-Version", "0"))
            if version > versions.get(ident, -1):
                versions[ident] = version
                ended[ident] = event, message.headers.get("Atelier-Tenant", "")
        work: list[Awaitable[None]] = []
        for step in await self._store.unheard(versions):
            assert step.task_id is not None, "it was found by its task"
            event, tenant = ended[step.task_id]
            work.append(self._put(event.task) if event.HasField("task") else self._ask(step, tenant))
        outcomes = await asyncio.gather(*work, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _put(self, task: task_pb2.Task) -> asyncio.Future[None]:
        workflow_id = UUID(task.workflow_id)
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.get(workflow_id)
        if waiting is not None:
            waiting.append(_Waiting(task, told))
            return told
        self._waiting[workflow_id] = [_Waiting(task, told)]
        work = asyncio.create_task(self._decide(workflow_id))
        self._running.add(work)
        work.add_done_callback(self._running.discard)
        return told

    async def _decide(self, workflow_id: UUID) -> None:
        """Decides upon a workflow until nothing waits for it."""
        taken: list[_Waiting] = []
        try:
            while self._waiting[workflow_id]:
                async with self._gate:
                    taken, self._waiting[workflow_id] = self._waiting[workflow_id], []
                    await self._tell_all(workflow_id, taken)
        finally:
            for one in [*taken, *self._waiting.pop(workflow_id)]:
                one.told.cancel()  # nothing where it was told

    async def _tell_all(self, workflow_id: UUID, taken: Sequence[_Waiting]) -> None:
        try:
            await self._tell(workflow_id, [one.task for one in taken])
        except Exception as error:
            for one in taken:
                if not one.told.done():
                    one.told.set_exception(error)
        else:
            for one in taken:
                if not one.told.done():
                    one.told.set_result(None)


def _event(message: Message) -> events_pb2.TaskStatusEvent | None:
    try:
        return events_pb2.TaskStatusEvent.FromString(message.data)
    except DecodeError:
        # It would come again for ever and keep what came with it from being acknowledged.
        _log.warning("event cannot be read", subject=message.subject)
        return None


def _note_failure(told: asyncio.Future[None]) -> None:
    if told.cancelled() or (error := told.exception()) is None:
        return
    if isinstance(error, MeshError | DatabaseUnavailableError):
        _log.info("left to the event", cause=type(error).__name__)
    else:
        _log.error("end of a task was not decided upon", exc_info=error)
