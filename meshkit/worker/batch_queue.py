"""Which of the waiting jobs run next, and which of them together.

Jobs start in the order they came, except that one whose batch may still find company waits a moment for it while later
ones go first. Pure: the clock's reading is an argument.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Batchable(Protocol):
    """What the batcher sees of a job."""

    @property
    def batch_key(self) -> Hashable | None:
        """Equal for jobs that may run together; None for one that runs alone."""
        ...


JobT = TypeVar("JobT", bound=Batchable)


@dataclass(slots=True)
class _JobGroup(Generic[JobT]):
    jobs: list[JobT]
    ripe_at: float
    key: Hashable | None = None


class BatchQueue(Generic[JobT]):
    """Jobs that wait for a slot.

    Args:
        max_batch: Most jobs in one batch.
        wait_seconds: How long a batch that is not full waits for company.
    """

    def __init__(self, max_batch: int, wait_seconds: float) -> None:
        self._max_batch = max_batch
        self._wait = wait_seconds
        self._groups: list[_JobGroup[JobT]] = []  # in the order of their first job
        self._open: dict[Hashable, _JobGroup[JobT]] = {}  # the group that the next job of a key joins
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, job: JobT, now: float, *, expected_peers: bool = True) -> None:
        """Let a job wait.

        Args:
            job: The job.
            now: The clock's reading.
            expected_peers: Whether others are on their way; where none is, its batch waits for nobody.
        """
        self._count += 1
        key = job.batch_key
        if key is not None and self._max_batch > 1:
            group = self._open.get(key)
            if group is None:
                group = self._open[key] = _JobGroup([], now + self._wait, key)
                self._groups.append(group)
            group.jobs.append(job)
            if len(group.jobs) == self._max_batch:
                del self._open[key]
                group.ripe_at = now
            elif not expected_peers:
                group.ripe_at = now
        else:
            self._groups.append(_JobGroup([job], now))

    def put_back(self, jobs: list[JobT], now: float) -> None:
        """Let jobs that were taken, and did not run, wait at the head of the line."""
        self._count += len(jobs)
        self._groups.insert(0, _JobGroup(jobs, now))

    def take(self, now: float) -> list[JobT]:
        """Take the first batch that is full or has waited long enough; empty where none has."""
        for index, group in enumerate(self._groups):
            if group.ripe_at <= now:
                del self._groups[index]
                self._close(group)
                self._count -= len(group.jobs)
                return group.jobs
        return []

    def ripe_at(self) -> float | None:
        """When the next batch will have waited long enough."""
        return min((group.ripe_at for group in self._groups), default=None)

    def remove(self, job: JobT) -> bool:
        """Take out a job that is not to run; False where it does not wait."""
        for index, group in enumerate(self._groups):
            if job in group.jobs:
                group.jobs.remove(job)
                self._count -= 1
                if not group.jobs:
                    del self._groups[index]
                    self._close(group)
                return True
        return False

    def _close(self, group: _JobGroup[JobT]) -> None:
        if group.key is not None and self._open.get(group.key) is group:
            del self._open[group.key]
