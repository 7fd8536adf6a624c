"""Run what no caller asks for: expiry, due retries, deletion of objects and old rows, gauges of the queues."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from meshkit import metrics
from meshkit.logging import get_logger
from meshkit.loops import Loop
from meshkit.objects import ObjectStore
from meshkit.staging import STAGING_FOLDER
from services.tasks.config import TasksSettings
from services.tasks.domain import RetryPolicy, TaskRecord, TaskStatus
from services.tasks.notifier import Notifier
from services.tasks.providers.domain import BreakerState
from services.tasks.scheduling.progress import ProgressRelay
from services.tasks.scheduling.service import WorkerSessions
from services.tasks.store import TaskStore

_log = get_logger(__name__)

# A worker ends an attempt itself at its limit; this is for one that does not.
OVERDUE_GRACE_SECONDS = 30.0
SESSION_KEEP_SECONDS = 86_400.0
GATE_KEEP_SECONDS = 7 * 86_400.0
_SWEEPS = 50
_SWEEPS_AT_ONCE = 8

_DEPTH = metrics.gauge("tasks_queue_depth", "Tasks that wait", ("queue", "lane"))
_SLOTS = metrics.gauge(
    "tasks_queue_slots", "Slots of the workers that take work; those with a fault do not", ("queue",)
)
_BREAKERS = metrics.gauge(
    "tasks_provider_breakers", "Breakers of a provider, its applications and models, by state", ("provider", "state")
)
_SWEPT = metrics.counter("tasks_objects_swept", "Objects deleted that no task names")


class TaskMaintenance:
    """The bodies of the loops; a test may call each.

    Args:
        store: The database.
        sessions: Reports attempts that ended.
        objects: The object store.
        notifier: Tells other replicas and workers what happened.
        policy: How often a task is tried.
        settings: Intervals and ages.
        clock: Gives the present, in UTC; only the age of uploads is judged by it.
    """

    def __init__(
        self,
        store: TaskStore,
        *,
        sessions: WorkerSessions,
        objects: ObjectStore,
        notifier: Notifier,
        policy: RetryPolicy,
        settings: TasksSettings,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._objects = objects
        self._notifier = notifier
        self._policy = policy
        self._settings = settings
        self._clock = clock
        self._depths: set[tuple[str, str]] = set()
        self._served: set[str] = set()
        self._limits = settings.gate_limits
        self._broken: set[str] = set()  # providers that had a gate
        self.lost: Sequence[str] = ()  # workers whose session expired a while ago, and that opened no other

    def loops(self, progress: ProgressRelay) -> list[Loop]:
        """All loops of a replica."""
        settings = self._settings
        flushes = [
            Loop("tasks-progress", progress.flush, 1.0),
            Loop("tasks-provider-calls", self.count_calls, 1.0, jitter=0.2),
        ]
        if not settings.run_loops:
            return flushes
        return [
            *flushes,
            Loop("tasks-expiry", self.expire, settings.sweep_interval_seconds, jitter=0.2),
            Loop("tasks-retries", self.promote, min(0.5, settings.sweep_interval_seconds), jitter=0.2),
            Loop("tasks-fallbacks", self.fall_back, settings.sweep_interval_seconds, jitter=0.2),
            Loop("tasks-objects", self.sweep_objects, max(1.0, min(30.0, settings.object_sweep_delay_seconds / 4))),
            Loop("tasks-staging", self.sweep_staging, 600.0),
            Loop("tasks-maintenance", self.forget, 600.0),
            Loop("tasks-depth", self.measure, 5.0),
        ]

    async def expire(self) -> None:
        """End the attempts of lost workers, and those that ran too long."""
        self._sessions.returned(await self._store.expire_sessions(self._policy))
        self._sessions.returned(await self._store.expire_overdue(OVERDUE_GRACE_SECONDS, self._policy))

    async def promote(self) -> None:
        """Let retries wait in their queue whose time has come."""
        for queue in await self._store.promote_delayed():
            self._notifier.waiting(queue)

    async def fall_back(self) -> None:
        """Have fallbacks take over what waits too long for a provider that takes no requests."""
        if records := await self._store.fall_back_waiting(self._policy):
            self._notifier.committed()
            self._notifier.ended(records)
            for queue in {record.queue_name for record in records}:
                self._notifier.waiting(queue)

    async def count_calls(self) -> None:
        """Write how many calls passed gates that were at rest."""
        await self._store.count_calls()

    async def sweep_objects(self) -> bool:
        """Delete the objects of attempts that lost, and of tasks that do not exist.

        Returns:
            Whether more wait.
        """
        due = await self._store.due_sweeps(_SWEEPS, self._settings.object_sweep_delay_seconds)
        gate = asyncio.Semaphore(_SWEEPS_AT_ONCE)

        async def swept(task_id: UUID, tenant: str, prefix: str, due_at: datetime) -> None:
            async with gate:
                await self._sweep(task_id, tenant, prefix)
                await self._store.forget_sweep(task_id, due_at)

        outcomes = await asyncio.gather(*(swept(*one) for one in due), return_exceptions=True)
        if failed := [one for one in outcomes if isinstance(one, BaseException)]:
            raise failed[0]
        return len(due) == _SWEEPS

    async def sweep_staging(self) -> None:
        """Delete uploads that no task took."""
        oldest = self._clock() - timedelta(seconds=self._settings.staging_max_age_seconds)
        # The object store is asked, not the rows: a tenant whose creates were all refused has uploads and no row.
        for tenant in await self._objects.tenants():
            async for info in self._objects.walk(tenant, f"{STAGING_FOLDER}/"):
                if info.modified < oldest:
                    await self._objects.delete(tenant, info.path)
                    _SWEPT.inc()

    async def forget(self) -> None:
        """Forget old idempotency keys and sessions, and gates of providers that are not used any more."""
        await self._store.purge_keys()
        await self._store.forget_sessions(SESSION_KEEP_SECONDS)
        await self._store.forget_gates(GATE_KEEP_SECONDS)

    async def measure(self) -> None:
        """Read what workers are scaled by, the depth of queues and the slots that serve them, and who is lost."""
        depths = {(queue, lane): pending for queue, lane, pending in await self._store.depths()}
        for key in self._depths | depths.keys():
            _DEPTH.labels(*key).set(depths.get(key, 0))
        self._depths = set(depths)
        slots = dict(await self._store.slots())
        for queue in self._served | slots.keys():
            _SLOTS.labels(queue).set(slots.get(queue, 0))
        self._served = set(slots)
        await self._measure_breakers()
        self.lost = await self._store.lost_workers()

    async def _measure_breakers(self) -> None:
        view = await self._store.gates()
        states = Counter(
            (gate.name.provider, gate.breaker.at(view.now, self._limits.of(gate.name).breaker).state)
            for gate in view.gates.values()
        )
        self._broken |= {provider for provider, _ in states}
        for provider in self._broken:
            for state in BreakerState:
                _BREAKERS.labels(provider, state.value).set(states[provider, state])

    async def _sweep(self, task_id: UUID, tenant: str, prefix: str) -> None:
        record = await self._store.get(task_id)
        if record is None or record.is_deleted:
            deleted: Sequence[str] = await self._objects.delete_prefix(tenant, prefix)
            _SWEPT.inc(len(deleted))
            return
        if record.state in (TaskStatus.PENDING, TaskStatus.EXECUTING):
            return
        for path in await self._losers(record, tenant, prefix):
            await self._objects.delete(tenant, path)
            _SWEPT.inc()

    async def _losers(self, record: TaskRecord, tenant: str, prefix: str) -> list[str]:
        kept = set(record.result_objects)
        inputs = f"{prefix}inputs/"
        return [
            info.path
            async for info in self._objects.walk(tenant, prefix)
            if info.path not in kept and not info.path.startswith(inputs)
        ]
