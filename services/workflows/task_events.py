"""Consumes ends of tasks: at once by core NATS, for certain by JetStream, and by asking where an event holds no task.

Ends that arrive while others are decided are decided together, whatever their workflows: a transaction costs nearly the
same for one as for many. An end that comes twice is decided once: a step keeps the last version of its task that was
processed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from uuid import UUID

from atelier.events.v1 import events_pb2
from atelier.tasks.v1 import task_pb2
from google.protobuf.message import DecodeError

from meshkit import metrics
from meshkit.bus import BusMessage
from meshkit.db import DatabaseUnavailableError
from meshkit.errors import MeshError
from meshkit.lingers import TASK_END_LINGER
from meshkit.logging import get_logger
from meshkit.microbatch import MicroBatcher
from meshkit.outbox import TENANT_HEADER, VERSION_HEADER
from services.workflows.domain import StepRecord
from services.workflows.store import WorkflowStore

_log = get_logger(__name__)

Tell = Callable[[Mapping[UUID, Sequence[task_pb2.Task]]], Awaitable[Mapping[UUID, object]]]
Ask = Callable[[StepRecord, str], Awaitable[None]]
# A group holds the locks of its workflows, whose callers wait meanwhile.
_GROUP = 32
# Below the number of connections: callers' requests must find one.
_GROUPS_AT_ONCE = 4
PATIENCE_SECONDS = 0.25

_SIZES = metrics.histogram(
    "workflow_group_members", "Workflows that were decided upon in one transaction", (), (1, 2, 4, 8, 16, 32)
)


@dataclass(frozen=True, slots=True)
class _PendingEnd:
    task: task_pb2.Task
    told: asyncio.Future[None]


class TaskEventConsumer:
    """Hands ends of tasks to the workflows that wait for them.

    Ends of one workflow wait for each other: while a group decides upon the workflow, and so holds its lock, later ends
    gather for the group after. A workflow is in one group at most.

    Args:
        store: The database.
        tell: Decides upon workflows of which these tasks ended; the outcome of each, an exception where it failed.
        ask: Asks for a step's task, in the name of its tenant, and decides upon its workflow where it ended.
        linger: Wait before a group that follows another of several workflows.
        patience_seconds: How long the next group waits for one that waits for a lock itself, before it sets out beside
            it: groups beside each other are smaller ones.
    """

    def __init__(
        self,
        store: WorkflowStore,
        tell: Tell,
        ask: Ask,
        *,
        linger: float = TASK_END_LINGER,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._store = store
        self._tell = tell
        self._ask = ask
        self._groups: MicroBatcher[UUID] = MicroBatcher(
            self._decide,
            name="task-ends",
            linger=linger,
            max_items=_GROUP,
            at_once=_GROUPS_AT_ONCE,
            patience=patience_seconds,
        )
        # By workflow. One that has an entry in either waits in the groups or is being decided upon.
        self._waiting: dict[UUID, list[_PendingEnd]] = {}
        self._deciding: dict[UUID, list[_PendingEnd]] = {}
        self._closed = False

    async def close(self) -> None:
        """Cancel what is under way; JetStream sends again what was not acknowledged."""
        self._closed = True
        await self._groups.close()
        for one in chain.from_iterable([*self._waiting.values(), *self._deciding.values()]):
            one.told.cancel()
        self._waiting.clear()
        self._deciding.clear()

    async def notice(self, message: BusMessage) -> None:
        """Process the notice of an ended task; return at once."""
        event = _event(message)
        if event is not None and event.HasField("task"):
            self._put(event.task).add_done_callback(_note_failure)

    async def batch(self, messages: Sequence[BusMessage]) -> None:
        """Process events of ended tasks from JetStream; most of them were processed by notices before.

        Raises:
            MeshError: Some end could not be processed now; the messages must come again.
        """
        told = [(event, message) for message in messages if (event := _event(message)) is not None]
        versions: dict[UUID, int] = {}
        ended: dict[UUID, tuple[events_pb2.TaskStatusEvent, str]] = {}
        for event, message in told:
            ident, version = UUID(event.task_id), int(message.headers.get(VERSION_HEADER, "0"))
            if version > versions.get(ident, -1):
                versions[ident] = version
                ended[ident] = event, message.headers.get(TENANT_HEADER, "")
        work: list[Awaitable[None]] = []
        for step in await self._store.steps_behind(versions):
            assert step.task_id is not None, "it was found by its task"
            event, tenant = ended[step.task_id]
            work.append(self._put(event.task) if event.HasField("task") else self._ask(step, tenant))
        outcomes = await asyncio.gather(*work, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _put(self, task: task_pb2.Task) -> asyncio.Future[None]:
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._closed:
            told.cancel()
            return told
        workflow_id, end = UUID(task.workflow_id), _PendingEnd(task, told)
        waiting = self._waiting.get(workflow_id)
        if waiting is not None:
            waiting.append(end)
            return told
        self._waiting[workflow_id] = [end]
        if workflow_id not in self._deciding:
            self._groups.put(workflow_id)
        return told

    async def _decide(self, workflow_ids: Sequence[UUID]) -> None:
        _SIZES.observe(len(workflow_ids))
        group = {ident: self._waiting.pop(ident) for ident in workflow_ids}
        self._deciding |= group
        outcomes: Mapping[UUID, object]
        try:
            outcomes = await self._tell({ident: [one.task for one in taken] for ident, taken in group.items()})
        except Exception as error:
            outcomes = dict.fromkeys(group, error)
        except asyncio.CancelledError:
            for one in chain.from_iterable(group.values()):
                one.told.cancel()
            raise
        finally:
            for ident in group:
                del self._deciding[ident]
                if ident in self._waiting and not self._closed:
                    self._groups.put(ident)
        for ident, taken in group.items():
            _settle(taken, outcomes[ident])


def _settle(taken: Sequence[_PendingEnd], outcome: object) -> None:
    for one in taken:
        if one.told.done():
            continue
        if isinstance(outcome, Exception):
            one.told.set_exception(outcome)
        else:
            one.told.set_result(None)


def _event(message: BusMessage) -> events_pb2.TaskStatusEvent | None:
    try:
        return events_pb2.TaskStatusEvent.FromString(message.data)
    except DecodeError:
        # Refused, it would come again without end, and the messages of its batch would not be acknowledged.
        _log.warning("event_unreadable", subject=message.subject)
        return None


def _note_failure(told: asyncio.Future[None]) -> None:
    if told.cancelled() or (error := told.exception()) is None:
        return
    if isinstance(error, MeshError | DatabaseUnavailableError):
        _log.info("left_to_event", cause=type(error).__name__)
    else:
        _log.error("task_end_not_processed", exc_info=error)
