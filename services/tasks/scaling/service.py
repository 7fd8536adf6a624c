"""Use cases of scaling: tell of the demand, cordon, and take surplus workers out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from meshkit import metrics
from meshkit.errors import not_found
from meshkit.logging import get_logger
from services.tasks.scaling.domain import QueueDemand, ScaleDecision, ScaleIn, ScalePolicy, WorkerPool, demands
from services.tasks.scaling.store import ScaleView, ScalingStore

_log = get_logger(__name__)

# A view serves all readers for so long.
CACHED_SECONDS = 1.0

_CORDONED = metrics.gauge("tasks_workers_cordoned", "Workers that are cordoned", ("queue",))
_REPORTED = metrics.gauge("tasks_slots_reported", "Slots that an autoscaler is to provide", ("queue",))
_WANTED = metrics.gauge("tasks_slots_wanted", "Slots for what runs and waits", ("queue",))
_CHANGES = metrics.counter("tasks_cordons", "Workers cordoned and uncordoned by the scheduler", ("change",))


class Demand(NamedTuple):
    """The demand of all queues at a moment."""

    queues: Sequence[QueueDemand]
    at: datetime


class Scaling:
    """Tells of the demand, and cordons workers.

    Args:
        store: The database.
        queues: Names of all queues.
        costs: Seconds that a job is expected to take, by pair, where nothing was measured.
        policy: How many workers there are to be.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        store: ScalingStore,
        *,
        queues: Collection[str],
        costs: Mapping[str, float],
        policy: ScalePolicy,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy
        self._store = store
        self._queues = sorted(queues)
        self._costs = costs
        self._clock = clock
        self._scale_in = ScaleIn(policy)
        self._demand: Demand | None = None
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def demand(self) -> Demand:
        """Return the demand, at most `CACHED_SECONDS` old; all who ask meanwhile share one look at the database."""
        async with self._reading:
            begun = self._clock()
            if self._demand is None or begun - self._read_at >= CACHED_SECONDS:
                self._demand = self._note(await self._store.view(self._queues, self._costs))
                self._read_at = begun
            return self._demand

    async def pools(self, *, cordoned_only: bool = False) -> list[WorkerPool]:
        """Return the pools that are alive, by name."""
        found = await self._store.pools()
        return [pool for pool in found if pool.cordoned_by is not None or pool.mark] if cordoned_only else found

    async def cordon(self, worker: str) -> list[WorkerPool]:
        """Give a worker no lease until it is uncordoned.

        Raises:
            MeshError: `NOT_FOUND` where none of that name is alive.
        """
        pools = self._changed(worker, await self._store.cordon(worker))
        _log.info("worker_cordoned", worker=worker, pools=len(pools))
        return pools

    async def uncordon(self, worker: str) -> list[WorkerPool]:
        """Let a worker take work again.

        Raises:
            MeshError: `NOT_FOUND` where none of that name is alive.
        """
        pools = self._changed(worker, await self._store.uncordon(worker, self.policy.settle_seconds))
        _log.info("worker_uncordoned", worker=worker, pools=len(pools))
        return pools

    async def note_marks(
        self, announced: Sequence[str], marked: Sequence[str], unmarked: Sequence[str]
    ) -> Sequence[str]:
        """Note the marks of workers at the orchestrator; see `ScalingStore.note_marks`."""
        accepted = await self._store.note_marks(announced, marked, unmarked)
        self._read_at = float("-inf")
        return accepted

    async def scale_in(self) -> None:
        """Cordon what was surplus for long enough, and uncordon what is wanted again."""
        changed = await self._store.scale_in(self._queues, self._costs, self._decide, self.policy.settle_seconds)
        if changed is None or not (changed.cordon or changed.uncordon):
            return
        self._read_at = float("-inf")
        _CHANGES.labels("cordon").inc(len(changed.cordon))
        _CHANGES.labels("uncordon").inc(len(changed.uncordon))
        _log.info("workers_scaled_in", cordoned=list(changed.cordon), uncordoned=list(changed.uncordon))

    def _decide(self, view: ScaleView) -> ScaleDecision:
        self._note(view)
        return self._scale_in.decide(self._clock(), view.works, view.pools)

    def _note(self, view: ScaleView) -> Demand:
        found = Demand(demands(view.works, view.pools, self.policy), view.at)
        for one in found.queues:
            _CORDONED.labels(one.work.name).set(one.cordoned)
            _REPORTED.labels(one.work.name).set(one.slots_reported)
            _WANTED.labels(one.work.name).set(one.slots_wanted)
        return found

    def _changed(self, worker: str, pools: Sequence[WorkerPool]) -> list[WorkerPool]:
        if not pools:
            raise not_found("Worker", worker)
        self._read_at = float("-inf")
        return list(pools)
