"""What executes attempts: a `Job` goes in, a `ChildDone` comes out.

There are two kinds. The device runner gives batches to a child process that owns a device. The call runner awaits
somebody else's service in this process. Everything before and after them is the same for both: leases, inputs, results.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Protocol

from atelier.inference.v1.child_pb2 import ChildDone, ChildJob, ChildProgress
from atelier.tasks.v1.enums_pb2 import ErrorCategory
from atelier.tasks.v1.service_requests_pb2 import ServiceRequest
from atelier.tasks.v1.worker_service_pb2 import WarmState

from meshkit.worker.pairs import Pair


class Withdrawn(Exception):  # noqa: N818 -- an outcome: the job was taken back before it ran
    """The job was withdrawn before it began."""


class JobLost(Exception):  # noqa: N818 -- an outcome, told apart by its category
    """What ran the job was lost while it ran.

    Args:
        message: One sentence for the caller of the task.
        category: Class of the error.
    """

    def __init__(self, message: str, category: ErrorCategory.ValueType) -> None:
        super().__init__(message)
        self.message = message
        self.category = category


async def _nowhere(request: ServiceRequest) -> None:
    raise RuntimeError(f"the request {request.id} is not one of a leased attempt")


@dataclass(slots=True, eq=False)
class ServiceCalls:
    """What a job asks of a provider.

    Attributes:
        open: What earlier attempts have asked, and what has not ended.
        note: Writes a request down as it stands.
        called_off: Whether nobody goes on with its requests once it is withdrawn.
    """

    open: Sequence[ServiceRequest] = ()
    note: Callable[[ServiceRequest], Awaitable[None]] = _nowhere
    called_off: bool = False


@dataclass(slots=True, eq=False)
class Job:
    """One attempt on its way through a runner.

    Attributes:
        pair: What it is, and by whom it is done.
        batch_key: Equal for jobs that may run together; None for one that runs alone.
        payload: What its handler gets.
        on_progress: Called with each report of progress.
        on_start: Called when its handler gets it.
        held: What its inputs are held by; None where it has none.
        withdrawn: Whether it is to end early.
        started: Whether its handler has it, or has had it.
        waits_since: When it came to its runner.
        calls: What it asks of its provider.
        ended: Its outcome.
    """

    pair: Pair
    batch_key: Hashable | None
    payload: ChildJob
    on_progress: Callable[[ChildProgress], None]
    on_start: Callable[[], None] = lambda: None
    held: AsyncExitStack | None = None
    withdrawn: bool = False
    started: bool = False
    waits_since: float = 0.0
    calls: ServiceCalls = field(default_factory=ServiceCalls)
    ended: asyncio.Future[ChildDone] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Runner(Protocol):
    """Executes jobs in a number of slots."""

    @property
    def slots(self) -> int:
        """Jobs, or batches of them, that run at once."""
        ...

    @property
    def busy(self) -> int:
        """Slots in use."""
        ...

    @property
    def ready(self) -> bool:
        """Whether jobs would start now; no work is leased while they would not."""
        ...

    @property
    def healthy(self) -> bool:
        """False once it is not expected to be ready again by itself soon; waiting jobs are handed back then."""
        ...

    @property
    def fault(self) -> str:
        """Why it is not healthy, for operators; empty where it is."""
        ...

    def warm(self) -> WarmState:
        """Return what is in memory, for the scheduler."""
        ...

    def start(self) -> None:
        """Begin; returns before it is ready."""
        ...

    async def close(self) -> None:
        """End what still runs."""
        ...

    async def execute(self, job: Job, *, expected_peers: bool = True) -> ChildDone:
        """Run a job once a slot is free.

        Args:
            job: The job.
            expected_peers: Whether others are on their way that may run together with it.

        Raises:
            Withdrawn: It was withdrawn before it began.
            WorkerUnfit: This worker cannot do such work now.
            JobLost: What ran it was lost.
        """
        ...

    def withdraw(self, job: Job) -> None:
        """End a job early: one that waits at once, one that runs as soon as its handler lets go."""
        ...

    def pause(self, job: Job) -> bool:
        """Ask a job that runs to stop where another attempt can go on; False where it cannot, and runs on."""
        ...
