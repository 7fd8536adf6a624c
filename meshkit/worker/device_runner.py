"""The runner of work that needs a device: slots, batches and the child that executes them.

Leased and direct work share the slots. A slot is one batch that runs in the child; a direct call takes one at once or
is refused, leased jobs wait for theirs.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from atelier.inference.v1.child_pb2 import ChildDone, ChildProgress
from atelier.tasks.v1.worker_service_pb2 import WarmModel, WarmState

from meshkit.errors import exhausted, unavailable
from meshkit.lingers import DEVICE_BATCH_LINGER
from meshkit.microbatch import Groups
from meshkit.worker import metrics
from meshkit.worker.runner import Job, Withdrawn
from meshkit.worker.supervisor import ChildLost, ChildSupervisor

# As many as a heartbeat may name.
_MOST_SIZES = 256


class DeviceRunner:
    """Runs jobs in a child process that owns a device.

    Args:
        supervisor: Keeps the child.
        slots: Batches that run at once.
        max_batch: Most jobs in one batch.
        batch_wait_seconds: How long a batch that is not full waits.
        room: Set when more jobs may be taken.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        supervisor: ChildSupervisor,
        *,
        slots: int,
        max_batch: int = 1,
        batch_wait_seconds: float = DEVICE_BATCH_LINGER,
        room: asyncio.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._supervisor = supervisor
        self._slots = slots
        self._free = slots
        self._waiting: Groups[Job] = Groups(linger=batch_wait_seconds, max_items=max_batch)
        self._room = room
        self._clock = clock
        self._numbers = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def slots(self) -> int:
        """Batches that can run at once."""
        return self._slots

    @property
    def busy(self) -> int:
        """Slots in use."""
        return self._slots - self._free

    @property
    def waiting(self) -> int:
        """Jobs that wait for a slot."""
        return len(self._waiting)

    @property
    def ready(self) -> bool:
        """Whether a child takes work now."""
        return self._supervisor.ready

    @property
    def healthy(self) -> bool:
        """False once several children in a row died before they were ready."""
        return self._supervisor.healthy

    @property
    def fault(self) -> str:
        """Why it is not healthy; empty where it is."""
        return self._supervisor.fault

    def warm(self) -> WarmState:
        """Return the models and adapters in the child's memory."""
        models, hello = self._supervisor.resident.models, self._supervisor.hello
        device = "" if hello is None else hello.device
        return WarmState(
            models=[model.name for model in models],
            loras=sorted({lora for model in models for lora in model.loras}),
            sizes=[WarmModel(name=model.name, bytes=model.bytes, device=device) for model in models[:_MOST_SIZES]],
        )

    def start(self) -> None:
        """Start the first child; returns before it is ready."""
        self._supervisor.start()

    async def close(self) -> None:
        """End the child."""
        await self._supervisor.stop()

    async def execute(self, job: Job, *, expected_peers: bool = True) -> ChildDone:
        """Run a job once a slot is free; see `Runner.execute`."""
        self._number(job)
        self._waiting.add(job, job.waits_since, key=job.batch_key, more=expected_peers)
        self.pump()
        return await job.ended

    @asynccontextmanager
    async def claim(self) -> AsyncIterator[None]:
        """Take a slot now, for `execute_claimed`.

        Raises:
            MeshError: EXHAUSTED where none is free, UNAVAILABLE where no child comes up.
        """
        if not self._supervisor.healthy:
            raise unavailable("The worker cannot execute tasks at the moment.", reason="CHILD_UNHEALTHY")
        if self._free <= 0 or len(self._waiting):
            raise exhausted("Every slot of this worker is taken.", reason="NO_FREE_SLOT")
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1
            self._room.set()
            self.pump()

    async def execute_claimed(self, job: Job) -> ChildDone:
        """Run a job in the slot that the caller has claimed; a caller that is cancelled waits for its job's end.

        Raises:
            ChildLost: the child was lost while it ran.
        """
        self._number(job)
        while True:
            await self._supervisor.wait_ready()
            run = asyncio.ensure_future(self._supervisor.run([job.payload], job.on_progress))
            job.started = True
            try:
                [done] = await asyncio.shield(run)
            except asyncio.CancelledError:
                self.withdraw(job)
                await asyncio.gather(run, return_exceptions=True)
                raise
            except ChildLost as lost:
                if not lost.collateral:
                    raise
            else:
                return done

    def withdraw(self, job: Job) -> None:
        """End a job early: one that waits at once, one that runs between two steps."""
        if job.withdrawn or job.ended.done():
            return
        job.withdrawn = True
        if job.started:
            self._supervisor.cancel(job.payload.number)
        elif self._waiting.remove(job):
            job.ended.set_exception(Withdrawn())
            self._room.set()

    def pause(self, job: Job) -> bool:  # noqa: ARG002 -- the runners' protocol
        """Never: what a batch has done so far is of no use to another attempt."""
        return False

    def pump(self) -> None:
        """Start what can start; called when a job, a slot or a child has come."""
        while self._free > 0 and len(self._waiting) and self._supervisor.ready:
            now = self._clock()
            batch = self._waiting.take(now)
            if not batch:
                self._wake_at(self._waiting.ready_at(), now)
                return
            self._free -= 1
            for job in batch:
                job.started = True
                job.on_start()
                metrics.slot_wait_seconds(job.pair.label).observe(now - job.waits_since)
            metrics.batch_members(batch[0].pair.label).observe(len(batch))
            self._begin(batch)
            self._room.set()

    def _begin(self, batch: list[Job]) -> None:
        try:
            ended = self._supervisor.begin([job.payload for job in batch], partial(_pass_on, batch))
        except Exception as error:  # nobody else would tell those who wait
            ended = asyncio.get_running_loop().create_future()
            ended.set_exception(error)
        ended.add_done_callback(partial(self._end, batch))

    def _end(self, batch: list[Job], ended: asyncio.Future[list[ChildDone]]) -> None:
        error = ended.exception()
        if error is None:
            for job, done in zip(batch, ended.result(), strict=True):
                if not job.ended.done():
                    job.ended.set_result(done)
        else:
            collateral = isinstance(error, ChildLost) and error.collateral
            again = [job for job in batch if collateral and not job.withdrawn]
            for job in batch:
                if job in again:
                    job.started = False
                elif not job.ended.done():
                    job.ended.set_exception(error)
            if again:
                self._waiting.put_back(again, self._clock())
        self._free += 1
        self._room.set()
        self.pump()

    def _number(self, job: Job) -> None:
        job.payload.number = next(self._numbers)
        job.waits_since = self._clock()

    def _wake_at(self, moment: float | None, now: float) -> None:
        if moment is None or (self._timer is not None and not self._timer.cancelled()):
            return

        def wake() -> None:
            self._timer = None
            self.pump()

        self._timer = asyncio.get_running_loop().call_later(max(moment - now, 0.0), wake)


def _pass_on(batch: list[Job], progress: ChildProgress) -> None:
    for job in batch:
        if job.payload.number == progress.number:
            job.on_progress(progress)
