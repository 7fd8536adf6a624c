"""Consumes ends of trainings: those of steps are asked for and decided upon, all others are passed over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from atelier.events.v1 import events_pb2
from google.protobuf.message import DecodeError

from meshkit.bus import BusMessage
from meshkit.logging import get_logger
from meshkit.outbox import TENANT_HEADER, VERSION_HEADER
from services.workflows.domain import StepRecord
from services.workflows.store import WorkflowStore

_log = get_logger(__name__)


class TrainingEventConsumer:
    """Hands ends of trainings to the workflows that wait for them.

    Args:
        store: The database.
        ask: Asks for a step's training, in the name of its tenant, and decides upon its workflow where it ended.
    """

    def __init__(self, store: WorkflowStore, ask: Callable[[StepRecord, str], Awaitable[None]]) -> None:
        self._store = store
        self._ask = ask

    async def batch(self, messages: Sequence[BusMessage]) -> None:
        """Process events of ended trainings from JetStream."""
        versions: dict[UUID, int] = {}
        tenants: dict[UUID, str] = {}
        for message in messages:
            try:
                ident = UUID(events_pb2.TrainingStatusEvent.FromString(message.data).task_id)
            except (DecodeError, ValueError):
                _log.warning("event_unreadable", subject=message.subject)
                continue
            versions[ident] = max(versions.get(ident, 0), int(message.headers.get(VERSION_HEADER, "0")))
            tenants[ident] = message.headers.get(TENANT_HEADER, "")
        for step in await self._store.steps_behind(versions):
            assert step.task_id is not None, "it was found by its training"
            await self._ask(step, tenants[step.task_id])
