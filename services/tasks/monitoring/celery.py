"""The workers in the shapes that Celery 5's `inspect` answers, for clients that were written for it. Pure.

A lease is a message that a worker has received: one that it runs is active, one that waits for a slot is reserved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

from services.tasks.domain import WorkerLoad

ByWorker = dict[str, Any]
# Celery forgets revoked tasks after so long, and remembers so many.
REVOKED_HOURS = 3
REVOKED_MOST = 1000
# As `resource.getrusage` names them; a worker that has not told yet has none.
_RUSAGE = (
    "utime", "stime", "maxrss", "ixrss", "idrss", "isrss", "minflt", "majflt",
    "nswap", "inblock", "oublock", "msgsnd", "msgrcv", "nsignals", "nvcsw", "nivcsw",
)  # fmt: skip


class HeldTask(NamedTuple):
    """A task that a worker holds.

    Attributes:
        session: The worker's session.
        running: Whether a slot is its own.
        since: When it was leased.
    """

    session: UUID
    id: UUID
    task_type: str
    queue: str
    priority: int
    attempt: int
    since: datetime
    running: bool


class DelayedTask(NamedTuple):
    """A task that waits for a time.

    Attributes:
        worker: Name of the worker that had it last, if one had.
        due: When it is tried again.
    """

    id: UUID
    task_type: str
    queue: str
    priority: int
    attempt: int
    worker: str | None
    due: datetime


class RosterWorker(NamedTuple):
    """A worker that is alive.

    Attributes:
        session: Its session.
        opened: When that was opened.
        polls: Polls it has made; a clock that rises.
    """

    session: UUID
    name: str
    queues: Sequence[str]
    slots: int
    opened: datetime
    polls: int
    load: WorkerLoad | None

    @property
    def celery_name(self) -> str:
        """Its name, as Celery has it."""
        return f"celery@{self.name}"


@dataclass(frozen=True, slots=True)
class Roster:
    """All workers that are alive, with what they hold.

    Attributes:
        cancelled: Tasks cancelled lately.
        at: When this was so.
    """

    at: datetime
    workers: Sequence[RosterWorker] = ()
    held: Sequence[HeldTask] = ()
    delayed: Sequence[DelayedTask] = ()
    cancelled: Sequence[UUID] = field(default=())


class CeleryStats(NamedTuple):
    """What six calls of `inspect` answer, each by worker."""

    active: ByWorker
    scheduled: ByWorker
    reserved: ByWorker
    revoked: ByWorker
    query_task: ByWorker
    stats: ByWorker


def stats_of(roster: Roster, broker: str) -> CeleryStats:
    """Return a snapshot in Celery's shapes; every worker is in all six.

    Args:
        roster: The workers.
        broker: Address of the bus; its credentials are not shown.
    """
    revoked = [str(ident) for ident in roster.cancelled]
    scheduled: dict[str, list[Any]] = {one.celery_name: [] for one in roster.workers}
    for task in roster.delayed:
        if (owner := _owner(task, roster.workers)) is not None:
            scheduled[owner.celery_name].append(_scheduled(task, owner))
    workers = roster.workers
    return CeleryStats(
        active={one.celery_name: _entries(roster.held, one, running=True) for one in workers},
        scheduled=scheduled,
        reserved={one.celery_name: _entries(roster.held, one, running=False) for one in workers},
        revoked={one.celery_name: list(revoked) for one in workers},
        query_task={one.celery_name: {} for one in workers},
        stats={one.celery_name: _stats(one, roster, broker) for one in workers},
    )


def _entries(held: Iterable[HeldTask], worker: RosterWorker, *, running: bool) -> list[dict[str, Any]]:
    pids = _pids(worker)
    return [
        _entry(
            task,
            worker,
            time_start=task.since.timestamp() if running else None,
            pid=pids[0] if running and pids else None,
        )
        for task in held
        if task.session == worker.session and task.running is running
    ]


def _entry(
    task: HeldTask | DelayedTask, worker: RosterWorker, *, time_start: float | None = None, pid: int | None = None
) -> dict[str, Any]:
    name = f"atelier.{task.task_type.lower()}"
    return {
        "id": str(task.id),
        "name": name,
        # What a task is about is its tenant's own.
        "args": [],
        "kwargs": {},
        "type": name,
        "hostname": worker.celery_name,
        "time_start": time_start,
        "acknowledged": time_start is not None,
        "delivery_info": {
            "exchange": "",
            "routing_key": task.queue,
            "priority": task.priority,
            "redelivered": task.attempt > 1,
        },
        "worker_pid": pid,
    }


def _scheduled(task: DelayedTask, worker: RosterWorker) -> dict[str, Any]:
    return {
        "eta": task.due.astimezone(UTC).isoformat(),
        "priority": task.priority,
        "request": _entry(task, worker),
    }


def _owner(task: DelayedTask, workers: Sequence[RosterWorker]) -> RosterWorker | None:
    serving = [one for one in workers if task.queue in one.queues]
    return next((one for one in serving if one.name == task.worker), serving[0] if serving else None)


def _pids(worker: RosterWorker) -> list[int]:
    if worker.load is None or not worker.load.pid:
        return []
    return list(worker.load.child_pids) or [worker.load.pid]


def _stats(worker: RosterWorker, roster: Roster, broker: str) -> dict[str, Any]:
    load = worker.load or WorkerLoad()
    began = load.started or worker.opened.timestamp()
    completed = sum(load.completed.values())
    inqueues = {"total": worker.slots, "active": sum(one.session == worker.session for one in roster.held)}
    return {
        "total": {f"atelier.{name.lower()}": count for name, count in load.completed.items()},
        "pid": load.pid or None,
        "clock": str(worker.polls),
        "uptime": max(0, int(roster.at.timestamp() - began)),
        "pool": {
            "implementation": "meshkit.worker.device_runner:DeviceRunner"
            if load.child_pids
            else "meshkit.worker.call_runner:CallRunner",
            "max-concurrency": worker.slots,
            "processes": _pids(worker),
            "max-tasks-per-child": "N/A",
            "put-guarded-by-semaphore": False,
            "timeouts": [0, 0],
            "writes": {
                "total": completed,
                "avg": "0.00",
                "all": "",
                "raw": "",
                "strategy": "fair",
                "inqueues": inqueues,
            },
        },
        "broker": _broker(broker),
        "prefetch_count": worker.slots,
        "rusage": {name: load.rusage.get(name, 0) for name in _RUSAGE},
    }


def _broker(address: str) -> dict[str, Any]:
    parts = urlsplit(address.partition(",")[0])
    return {
        "hostname": parts.hostname or "",
        "userid": None,
        "virtual_host": "/",
        "port": parts.port or 4222,
        "insist": False,
        "ssl": parts.scheme == "tls",
        "transport": "nats",
        "connect_timeout": 4,
        "transport_options": {},
        "login_method": None,
        "uri_prefix": None,
        "heartbeat": 0,
        "failover_strategy": "round-robin",
        "alternates": [],
        "credential_provider": None,
    }
