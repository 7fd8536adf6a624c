"""How many workers are wanted, and which of those that are there may go. Pure: the clock is passed in.

Workers go in two phases. What is surplus for a while is cordoned: it gets no lease, so that nothing runs on it. Whoever
removes workers announces marks for them, which have them go first, sets these and tells so; only then is less reported.
So nothing that runs is ever among the first, however late the marks are. Where the work comes back, workers are
uncordoned before others are asked for. One that had a mark may have been chosen already: it waits for
`ScalePolicy.settle_seconds`.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

# Rounding must not ask for one worker more.
_SLACK = 1e-6
# A replica that has not looked for so long begins anew.
_GAP_SECONDS = 15.0


class CordonedBy(enum.StrEnum):
    """Who has cordoned a worker."""

    OPERATOR = "OPERATOR"
    SCHEDULER = "SCHEDULER"


class RemovalMark(enum.StrEnum):
    """Whether the orchestrator removes a worker before others."""

    # It may by now: the mark is about to be set, and nobody knows when.
    ANNOUNCED = "ANNOUNCED"
    SET = "SET"


@dataclass(frozen=True, slots=True)
class ScalePolicy:
    """How many workers there are to be.

    Attributes:
        drain_seconds: In which waiting work is to be done.
        utilization: Share of the slots that is to be busy.
        surplus_seconds: How long a worker is too many before it is cordoned; 0 cordons none.
        keep: Workers of each kind that are never cordoned.
        settle_seconds: How long a worker that bore a mark gets no lease after it is uncordoned.
    """

    drain_seconds: float = 60.0
    utilization: float = 0.8
    surplus_seconds: float = 0.0
    keep: int = 0
    settle_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class QueueWork:
    """The work of a queue.

    Attributes:
        waiting: Jobs that wait, also at workers that have no slot for them yet.
        waiting_seconds: Seconds of a slot that these are expected to take.
        running: Jobs that run.
        running_seconds: Seconds of a slot that these are expected to take yet.
        delayed: Jobs that wait for a retry.
    """

    name: str
    waiting: int = 0
    waiting_seconds: float = 0.0
    running: int = 0
    running_seconds: float = 0.0
    delayed: int = 0

    def slots_wanted(self, drain_seconds: float) -> float:
        """Slots for what runs, and as many as do what waits in time; a job takes one slot, however long it is."""
        return self.running + min(float(self.waiting), self.waiting_seconds / drain_seconds)


@dataclass(frozen=True, slots=True)
class WorkerPool:
    """A session of a worker.

    Attributes:
        held: Attempts that it holds.
        draining: Whether its worker ends by itself.
        mark: Whether its worker bears a mark at the orchestrator.
        faulty: Whether it tells a fault, and takes no work.
    """

    session: UUID
    name: str
    queues: Sequence[str]
    slots: int
    held: int
    draining: bool = False
    cordoned_by: CordonedBy | None = None
    cordoned_at: datetime | None = None
    mark: RemovalMark | None = None
    faulty: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it may be given work."""
        return self.cordoned_by is None and not self.faulty

    @property
    def worker(self) -> str:
        """The machine, or the pod: all that goes when it goes."""
        return worker_of(self.name)


def worker_of(name: str) -> str:
    """Return the worker of a pool's name."""
    return name.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Worker:
    """All pools of a machine or pod, and the queues that it serves."""

    name: str
    pools: Sequence[WorkerPool]
    queues: tuple[str, ...]

    def slots(self, queue: str) -> int:
        """Slots for a queue."""
        return sum(pool.slots for pool in self.pools if queue in pool.queues)

    def open_slots(self, queue: str) -> int:
        """Slots for a queue that take work."""
        return sum(pool.slots for pool in self.pools if queue in pool.queues and pool.is_open)

    def faulty_slots(self, queue: str) -> int:
        """Slots for a queue that are not cordoned and take no work."""
        return sum(
            pool.slots for pool in self.pools if queue in pool.queues and pool.faulty and pool.cordoned_by is None
        )

    @property
    def held(self) -> int:
        """Attempts that it holds."""
        return sum(pool.held for pool in self.pools)

    @property
    def takes_work(self) -> bool:
        """Whether a pool of it may be given work."""
        return any(pool.is_open for pool in self.pools)

    @property
    def is_faulty(self) -> bool:
        """Whether no pool of it would take work."""
        return all(pool.faulty for pool in self.pools)

    @property
    def is_cordoned(self) -> bool:
        """Whether all of it is cordoned."""
        return all(pool.cordoned_by is not None for pool in self.pools)

    @property
    def is_surplus(self) -> bool:
        """Whether the scheduler has cordoned it."""
        return all(pool.cordoned_by is CordonedBy.SCHEDULER for pool in self.pools)

    @property
    def is_marked(self) -> bool:
        """Whether it bears a mark, or may do so by now."""
        return any(pool.mark is not None for pool in self.pools)

    @property
    def may_go(self) -> bool:
        """Whether it is cordoned, idle and marked."""
        return self.is_surplus and not self.held and all(pool.mark is RemovalMark.SET for pool in self.pools)


def workers_of(pools: Sequence[WorkerPool]) -> list[Worker]:
    """Return the workers of some pools; those that end by themselves are as good as gone."""
    by_name: dict[str, list[WorkerPool]] = {}
    for pool in pools:
        by_name.setdefault(pool.worker, []).append(pool)
    return [
        Worker(name, own, tuple(sorted({queue for pool in own for queue in pool.queues})))
        for name, own in by_name.items()
        if not any(pool.draining for pool in own)
    ]


@dataclass(frozen=True, slots=True)
class QueueDemand:
    """The work of a queue, and who is there for it.

    Attributes:
        slots_wanted: Slots for what runs and waits.
        slots: Slots of workers that take work.
        slots_reported: Slots that an autoscaler is to provide.
        workers: Workers that serve it.
        cordoned: Those of them that are cordoned.
    """

    work: QueueWork
    slots_wanted: float = 0.0
    slots: int = 0
    slots_reported: float = 0.0
    workers: int = 0
    cordoned: int = 0

    @property
    def is_active(self) -> bool:
        """Whether workers are needed, or some must not go: at zero nothing is cordoned first."""
        return self.slots_reported > 0 or self.work.delayed > 0


def demands(works: Sequence[QueueWork], pools: Sequence[WorkerPool], policy: ScalePolicy) -> list[QueueDemand]:
    """Tell of every queue what is wanted and what is to be provided."""
    workers = workers_of(pools)
    leaving = {worker.name for kind in _kinds(workers).values() for worker in _may_go(kind)}
    found = []
    for work in works:
        serving = [worker for worker in workers if work.name in worker.queues]
        kept = sum(worker.slots(work.name) for worker in serving if worker.name not in leaving)
        wanted = work.slots_wanted(policy.drain_seconds)
        needed = wanted / policy.utilization
        faulty = sum(worker.faulty_slots(work.name) for worker in serving)
        # What an operator has cordoned is provided and takes nothing. So does what is faulty, but where all new workers
        # are faulty too, asking for one more for each would never end.
        closed = min(faulty, needed) - faulty
        closed += sum(
            worker.slots(work.name) - worker.open_slots(work.name) for worker in serving if not worker.is_surplus
        )
        found.append(
            QueueDemand(
                work,
                slots_wanted=wanted,
                slots=sum(worker.open_slots(work.name) for worker in serving),
                slots_reported=max(needed + closed if wanted else 0.0, float(kept)),
                workers=len(serving),
                cordoned=sum(worker.is_cordoned for worker in serving),
            )
        )
    return found


def _kinds(workers: Sequence[Worker]) -> dict[tuple[str, ...], list[Worker]]:
    """Group workers by what they serve: those of a kind stand for each other."""
    kinds: dict[tuple[str, ...], list[Worker]] = {}
    for worker in workers:
        kinds.setdefault(worker.queues, []).append(worker)
    return kinds


def _may_go(kind: Sequence[Worker]) -> list[Worker]:
    """Return the workers of a kind that may be removed.

    None where another one bears a mark as well: it would be among the first to go, and takes work.
    """
    if any(worker.is_marked and not worker.is_surplus for worker in kind):
        return []
    return [worker for worker in kind if worker.may_go]


@dataclass(frozen=True, slots=True)
class ScaleDecision:
    """Workers to cordon and to uncordon, by name."""

    cordon: Sequence[str] = ()
    uncordon: Sequence[str] = ()


@dataclass(slots=True)
class _Surplus:
    """How many workers of a kind were too many, lately: pairs of the time and the number, oldest first."""

    seen: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, now: float, count: int, seconds: float) -> int:
        """Note a number; return how many were too many all the time."""
        if self.seen and now - self.seen[-1][0] > _GAP_SECONDS:
            self.seen.clear()
        self.seen.append((now, count))
        # The last one before the time begins still tells of its beginning.
        while len(self.seen) > 1 and self.seen[1][0] <= now - seconds:
            self.seen.popleft()
        return min(number for _, number in self.seen) if self.seen[0][0] <= now - seconds else 0

    def take(self, count: int) -> None:
        """Note that so many are too many no more."""
        self.seen = deque((time, number - count) for time, number in self.seen)


class ScaleIn:
    """Decides who is cordoned: the workers that have been idle for longest, as many as were too many for a while.

    Args:
        policy: How many workers there are to be.
    """

    def __init__(self, policy: ScalePolicy) -> None:
        self._policy = policy
        self._surplus: dict[tuple[str, ...], _Surplus] = {}
        self._idle_since: dict[str, float] = {}

    def decide(self, now: float, works: Sequence[QueueWork], pools: Sequence[WorkerPool]) -> ScaleDecision:
        """Decide at a moment.

        Args:
            now: Monotonic seconds.
            works: The work of all queues.
            pools: The pools that are alive.
        """
        policy = self._policy
        workers = workers_of(pools)
        self._note_idle(now, workers)
        if policy.surplus_seconds <= 0:
            return ScaleDecision(uncordon=[worker.name for worker in workers if _scheduled(worker)])
        needed = {work.name: work.slots_wanted(policy.drain_seconds) / policy.utilization for work in works}
        cordon: list[str] = []
        uncordon: list[str] = []
        kinds = _kinds(workers)
        self._surplus = {queues: self._surplus.get(queues, _Surplus()) for queues in kinds}
        for queues, kind in kinds.items():
            back = self._missing(kind, needed)
            uncordon.extend(back)
            surplus = self._spare(kind, needed) if not back else []
            lasting = self._surplus[queues].add(now, len(surplus), policy.surplus_seconds)
            cordon.extend(surplus[:lasting])
            self._surplus[queues].take(min(lasting, len(surplus)))
        return ScaleDecision(cordon, uncordon)

    def _note_idle(self, now: float, workers: Sequence[Worker]) -> None:
        self._idle_since = {
            worker.name: self._idle_since.get(worker.name, now) for worker in workers if not worker.held
        }

    def _missing(self, kind: Sequence[Worker], needed: Mapping[str, float]) -> list[str]:
        """Return whom to uncordon: unmarked ones first, which get leases at once, and those that were cordoned last."""
        cordoned = sorted(
            (worker for worker in kind if _scheduled(worker) and not worker.is_faulty),
            key=lambda worker: (worker.is_marked, -self._idle_since.get(worker.name, 0.0), worker.name),
        )
        taking = [worker for worker in kind if worker.takes_work and not _scheduled(worker)]
        back: list[str] = []
        slots = Counter(dict.fromkeys(kind[0].queues, 0))
        slots.update(_slots(taking))
        while cordoned and (_lacks(slots, needed) or len(taking) + len(back) < self._policy.keep):
            worker = cordoned.pop(0)
            back.append(worker.name)
            slots.update({queue: worker.slots(queue) for queue in worker.queues})
        return back

    def _spare(self, kind: Sequence[Worker], needed: Mapping[str, float]) -> list[str]:
        """Return the idle workers that the others can do without.

        Those first that take no work because of a fault, then those that have been idle for longest.
        """
        taking = [worker for worker in kind if not worker.is_cordoned]
        slots = _slots(taking)
        spare: list[str] = []
        for worker in sorted(
            (worker for worker in taking if not worker.held),
            key=lambda worker: (not worker.is_faulty, self._idle_since[worker.name], worker.name),
        ):
            rest = Counter(slots)
            rest.subtract(_slots([worker]))
            if len(taking) - len(spare) <= self._policy.keep or _lacks(rest, needed):
                break
            slots = rest
            spare.append(worker.name)
        return spare


def _scheduled(worker: Worker) -> bool:
    return any(pool.cordoned_by is CordonedBy.SCHEDULER for pool in worker.pools)


def _slots(workers: Sequence[Worker]) -> Counter[str]:
    """Return the slots that take work, by queue."""
    total = Counter[str]()
    for worker in workers:
        for queue in worker.queues:
            total[queue] += worker.open_slots(queue)
    return total


def _lacks(slots: Mapping[str, int], needed: Mapping[str, float]) -> bool:
    """Whether a queue that these serve has fewer slots than it needs."""
    return any(needed.get(queue, 0.0) > count + _SLACK for queue, count in slots.items())
