"""The attempts that a worker holds, those that ended lately, and progress that is not reported yet."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence

from atelier.tasks.v1.phase_pb2 import TASK_PHASE_RUNNING, TaskPhase
from atelier.tasks.v1.worker_service_pb2 import AttemptRef, Lease, Progress

from meshkit.worker.session import WorkerSession

_ENDED_KEPT = 4096

Key = tuple[str, int]
"""A job and the number of its attempt."""


class HeldLease:
    """One attempt that this worker holds.

    Attributes:
        lease: What was leased.
        session: Session that holds it.
        key: Job and attempt.
    """

    __slots__ = ("_on_lost", "key", "lease", "lost", "session")

    def __init__(self, lease: Lease, session: WorkerSession) -> None:
        self.key: Key = (lease.job_id, lease.attempt)
        self.lease = lease
        self.session = session
        self.lost: str | None = None
        self._on_lost: Callable[[str], None] | None = None

    @property
    def ref(self) -> AttemptRef:
        """Job and attempt, as the service names them."""
        return AttemptRef(job_id=self.lease.job_id, attempt=self.lease.attempt)

    def on_lost(self, callback: Callable[[str], None]) -> None:
        """Have `callback` called when the attempt is to end, at once if it is lost.

        It is told why: `ended` where the task has, `given_up` or `expired` where another attempt may follow.
        """
        self._on_lost = callback
        if self.lost is not None:
            callback(self.lost)

    def lose(self, why: str) -> None:
        """Tell the holder that the attempt is lost; the first reason stays."""
        if self.lost is None:
            self.lost = why
            if self._on_lost is not None:
                self._on_lost(why)

    def forget(self) -> None:
        """Call nobody any more, so that its holder is freed without the garbage collector."""
        self._on_lost = None


class HeldLeases:
    """The attempts that are held, by job and number.

    Args:
        room: Set when one has ended: more may be taken.
    """

    def __init__(self, room: asyncio.Event) -> None:
        self._room = room
        self._held: dict[Key, HeldLease] = {}
        self._ended: OrderedDict[Key, None] = OrderedDict()
        self._progress: dict[Key, Progress] = {}
        self.progressed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._held)

    def all(self) -> Sequence[HeldLease]:
        """Return all that are held."""
        return list(self._held.values())

    def get(self, key: Key) -> HeldLease | None:
        """Return the attempt, where it is held."""
        return self._held.get(key)

    def has_ended(self, key: Key) -> bool:
        """Tell whether the attempt was held and ended lately."""
        return key in self._ended

    def add(self, held: HeldLease) -> bool:
        """Hold an attempt; False where it is held already."""
        if held.key in self._held:
            return False
        self._held[held.key] = held
        self._ended.pop(held.key, None)
        return True

    def drop(self, held: HeldLease) -> None:
        """Hold an attempt no more."""
        held.forget()
        if self._held.pop(held.key, None) is not None:
            self._ended[held.key] = None
            if len(self._ended) > _ENDED_KEPT:
                self._ended.popitem(last=False)
        self._progress.pop(held.key, None)
        self._room.set()

    def lose(self, session: WorkerSession) -> None:
        """Drop the attempts of a session that is lost, and tell their holders."""
        for held in [held for held in self._held.values() if held.session is session]:
            held.lose("expired")
            self.drop(held)
        self._progress.clear()

    def progress(
        self,
        held: HeldLease,
        percent: float,
        *,
        step: int,
        total: int,
        preview: bytes = b"",
        text: str = "",
        phase: TaskPhase.ValueType = TASK_PHASE_RUNNING,
        queue_position: int | None = None,
    ) -> None:
        """Note the progress of an attempt. The newest is reported, a few times a second."""
        if held.lost is not None or held.key not in self._held:
            return
        before = self._progress.get(held.key)
        if before is not None:
            preview, text = preview or before.preview, text or before.text
        noted = self._progress[held.key] = Progress(
            ref=held.ref,
            progress=min(max(percent, 0.0), 100.0),
            preview=preview,
            phase=phase,
            text=text,
            queue_position=queue_position,
        )
        if total > 0:
            noted.step, noted.total_steps = step, total
        self.progressed.set()

    def take_progress(self, most: int) -> list[Progress]:
        """Take progress to report; `progressed` stays set where more is left."""
        self.progressed.clear()
        batch = [self._progress.pop(key) for key in list(self._progress)[:most]]
        if self._progress:
            self.progressed.set()
        return batch
