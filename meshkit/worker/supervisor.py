"""The parent's side of a worker's child: start it, send it batches, watch it, kill it, start the next one.

One `ChildSupervisor` keeps one child alive. A child that passes its memory budget or a deadline is killed, and what ran
in it ends with `ChildLost`; whoever waits in the parent does not notice more than a delay.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import random
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from atelier.inference.v1.child_pb2 import (
    ChildCancel,
    ChildDone,
    ChildHello,
    ChildJob,
    ChildMessage,
    ChildPause,
    ChildProgress,
    ChildResident,
    ChildStop,
    FromChild,
    ToChild,
)
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_RESOURCE, ERROR_CATEGORY_TIMEOUT, ErrorCategory

from meshkit.last_words import LastWords
from meshkit.logging import get_logger
from meshkit.wire import pack
from meshkit.worker.child_pipe import ChildPipe
from meshkit.worker.load import ProcessTree
from meshkit.worker.runner import JobLost

_log = get_logger(__name__)

_FIRST_BACKOFF_SECONDS = 0.2
_LAST_BACKOFF_SECONDS = 30.0
_EXIT_SECONDS = 0.5
_UNHEALTHY_AFTER = 3  # starts in a row without a ready child


class ChildLost(JobLost):
    """The child died, or was killed, while a batch ran in it.

    Args:
        message: One sentence for the caller of the task.
        category: RESOURCE for a death or a passed memory budget, TIMEOUT for a passed deadline.
        collateral: Whether another batch is known to be the cause.
    """

    def __init__(self, message: str, category: ErrorCategory.ValueType, *, collateral: bool = False) -> None:
        super().__init__(message, category)
        self.collateral = collateral


class ChildNotStarted(ChildLost):
    """The only child of a supervisor ended before it was ready: no fault of what was to run in it.

    Args:
        fault: Why, for operators.
    """

    def __init__(self, fault: str) -> None:
        super().__init__("The worker's process did not start.", ERROR_CATEGORY_RESOURCE, collateral=True)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """What a child may take.

    Attributes:
        memory_bytes: Resident memory of its process tree; below the container's limit, which kills everything.
        step_seconds: Longest silence between two steps of a batch, and longest way from a cancel to its end.
        first_step_seconds: Longest silence before the first step; models are loaded in it.
        start_seconds: Longest way from its start to its first frame.
        sample_seconds: How often all that is looked at.
    """

    memory_bytes: int
    step_seconds: float = 120.0
    first_step_seconds: float = 900.0
    start_seconds: float = 300.0
    sample_seconds: float = 0.5


class ChildState(enum.Enum):
    """State of the child."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    BACKING_OFF = "backing_off"


@dataclass(slots=True, eq=False)
class _RunningBatch:
    """A batch that was sent to the child."""

    jobs: Sequence[ChildJob]
    on_progress: Callable[[ChildProgress], None]
    on_message: Callable[[ChildMessage], None]
    ended: asyncio.Future[list[ChildDone]]
    last_seen: float
    stepped: bool = False
    cancelled_at: float | None = None
    done: dict[int, ChildDone] = field(default_factory=dict)

    def overdue(self, now: float, limits: ChildLimits) -> bool:
        """Tell whether a deadline has passed."""
        silence = limits.step_seconds if self.stepped else limits.first_step_seconds
        if now - self.last_seen > silence:
            return True
        return self.cancelled_at is not None and now - self.cancelled_at > limits.step_seconds


class ChildSupervisor:
    """Keeps one child process alive and runs batches in it.

    Args:
        argv: Command of the child; `--fd N --parent PID` is appended.
        limits: What it may take.
        environment: Its environment; this process's where absent.
        on_change: Called when `ready`, `healthy` or `resident` may have changed.
        on_lost: Called with `died`, `memory`, `deadline` or `start` for every child that was lost.
        once: Whether no other child is started after the first.
        sleep: Waits so many seconds between two starts.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        limits: ChildLimits,
        environment: Mapping[str, str] | None = None,
        on_change: Callable[[], None] = lambda: None,
        on_lost: Callable[[str], None] = lambda _: None,
        once: bool = False,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._argv = list(argv)
        self._limits = limits
        self._environment = None if environment is None else dict(environment)
        self._on_change = on_change
        self._on_lost = on_lost
        self._once = once
        self._sleep = sleep
        self._clock = clock
        self._state = ChildState.STOPPED
        self._failed_starts = 0
        self._fault = ""  # why the last child was not ready
        self._hello: ChildHello | None = None
        self._resident = ChildResident()
        self._greeted = asyncio.Event()
        self._stopping = False
        self._running: dict[int, _RunningBatch] = {}  # by the number of each of its jobs
        self._pipe: ChildPipe | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def state(self) -> ChildState:
        """State of the child."""
        return self._state

    @property
    def ready(self) -> bool:
        """Whether a child takes work now."""
        return self._state is ChildState.READY

    @property
    def healthy(self) -> bool:
        """False once several children in a row died before they were ready."""
        return self.ready or self._failed_starts < _UNHEALTHY_AFTER

    @property
    def fault(self) -> str:
        """Why it is not healthy, by the last child's own words; empty where it is."""
        return "" if self.healthy else self._fault or "The process of the worker ends again and again."

    @property
    def pid(self) -> int | None:
        """Process of the child, where one lives."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    @property
    def hello(self) -> ChildHello | None:
        """What the last child said of itself; None before the first was ready."""
        return self._hello

    @property
    def resident(self) -> ChildResident:
        """What is in the child's memory."""
        return self._resident

    def start(self) -> None:
        """Start the first child; returns before it is ready."""
        assert self._keeper is None, "a supervisor starts once"
        self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="child-supervisor")

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """End the child: ask it, wait, kill it."""
        self._stopping = True
        if self._pipe is not None:
            self._pipe.send(pack(ToChild(stop=ChildStop())))
        if self._keeper is None:
            self._greeted.set()
            return
        if self._state is not ChildState.READY:
            grace_seconds = 0.0  # it does not read yet, or does not live
        _, pending = await asyncio.wait([self._keeper], timeout=grace_seconds)
        if pending:
            self._kill()
            self._keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeper
        self._set_state(ChildState.STOPPED)
        self._greeted.set()  # wakes `wait_ready`, which then raises

    async def wait_ready(self) -> None:
        """Wait until a child takes work.

        Raises:
            ChildNotStarted: its only child ended before it was ready.
            ChildLost: the supervisor is being stopped.
        """
        while not self.ready:
            if self._stopping:
                if self._once:
                    raise ChildNotStarted(self._fault)
                raise ChildLost("The worker is shutting down.", ERROR_CATEGORY_RESOURCE, collateral=True)
            await self._greeted.wait()

    def begin(
        self,
        jobs: Sequence[ChildJob],
        on_progress: Callable[[ChildProgress], None],
        on_message: Callable[[ChildMessage], None] = lambda _: None,
    ) -> asyncio.Future[list[ChildDone]]:
        """Give a batch of jobs to the child; the future ends with one outcome a job, in order, or with `ChildLost`.

        Raises:
            ChildLost: there is no child.
            WireError: the batch is too large for a frame.
        """
        if not self.ready:
            raise ChildLost("The worker's process is not ready.", ERROR_CATEGORY_RESOURCE, collateral=True)
        assert self._pipe is not None
        ended: asyncio.Future[list[ChildDone]] = asyncio.get_running_loop().create_future()
        running = _RunningBatch(jobs, on_progress, on_message, ended, self._clock())
        # Packed first: a batch that is too large must not count as running, or its deadline would kill the child.
        message = ToChild()
        message.run.jobs.extend(jobs)  # copied once; a ChildBatch made before would be copied again
        frame = pack(message)
        for job in jobs:
            self._running[job.number] = running
        self._pipe.send(frame)
        return ended

    async def run(self, jobs: Sequence[ChildJob], on_progress: Callable[[ChildProgress], None]) -> list[ChildDone]:
        """Run a batch of jobs in the child, as `begin` does, and wait for its end.

        A caller that is cancelled abandons the batch: its jobs are asked to stop.

        Raises:
            ChildLost: the child ended before the batch did, or there is none.
            WireError: the batch is too large for a frame.
        """
        ended = self.begin(jobs, on_progress)
        try:
            return await ended
        except asyncio.CancelledError:
            for job in jobs:
                self.cancel(job.number)
            raise

    def cancel(self, number: int) -> None:
        """Ask the job to stop between two steps; without effect where it has ended."""
        running = self._running.get(number)
        if running is None or self._pipe is None:
            return
        if len(running.jobs) == 1 and running.cancelled_at is None:
            running.cancelled_at = self._clock()
        self._pipe.send(pack(ToChild(cancel=ChildCancel(number=number))))

    def pause(self, number: int) -> None:
        """Ask the job to stop where another attempt can go on; without effect where it has ended."""
        if number in self._running and self._pipe is not None:
            self._pipe.send(pack(ToChild(pause=ChildPause(number=number))))

    def say(self, message: ChildMessage) -> None:
        """Pass something on to a job; without effect where it has ended."""
        if message.number in self._running and self._pipe is not None:
            self._pipe.send(pack(ToChild(message=message)))

    async def _keep(self) -> None:
        while not self._stopping:
            self._set_state(ChildState.STARTING)
            try:
                greeted, busy = await self._one_life()
            except Exception:
                _log.exception("child_supervision_failed")
                greeted, busy = False, False
            # A child that was lost with work was lost by that work: the next one starts at once. A child that dies
            # before it is ready, or idle, will most likely die again: those starts back off.
            self._failed_starts = 0 if greeted and busy else self._failed_starts + 1
            if self._once:
                self._stopping = True
                self._set_state(ChildState.STOPPED)
                self._greeted.set()  # wakes `wait_ready`, which then raises
            if self._stopping:
                break
            self._set_state(ChildState.BACKING_OFF)
            if self._failed_starts:
                ceiling = min(_LAST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2**self._failed_starts)
                await self._sleep(ceiling * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter, not a secret

    async def _one_life(self) -> tuple[bool, bool]:
        """Run one child to its end; tells whether it got ready and whether it had work when it was lost."""
        ours, theirs = socket.socketpair()
        words = await LastWords.open()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                "--fd",
                str(theirs.fileno()),
                "--parent",
                str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
                stderr=words.fd,
                pass_fds=[theirs.fileno()],
                env=self._environment,
                start_new_session=True,  # a Ctrl-C in the terminal must reach the parent alone, which drains
            )
        except OSError as error:
            _log.exception("child_not_started")
            ours.close()
            self._fault = f"The worker's process cannot be started: {error.strerror}."
            self._on_lost("start")
            return False, False
        finally:
            theirs.close()
            words.given()
        _, self._pipe = await asyncio.get_running_loop().create_unix_connection(
            lambda: ChildPipe(self._frame), sock=ours
        )
        cause = "died"
        try:
            cause = await self._watch(self._process, self._pipe)
        finally:
            self._kill()
            self._pipe.close()
            code = await asyncio.shield(self._process.wait())
            said = await asyncio.shield(words.ended())
            greeted, busy = self.ready, bool(self._running)
            self._fault = "" if greeted else f"The worker's process does not start: {_why(cause, code, said)}"
            self._greeted.clear()
            self._pipe = None
            self._resident = ChildResident()
            if not self._stopping:
                self._on_lost(cause if greeted else "start")
                _log.warning(
                    "child_lost",
                    cause=cause,
                    exit_code=code,
                    was_ready=greeted,
                    jobs=len(self._running),
                    starts_failed=0 if greeted else self._failed_starts + 1,
                    last_error=said,
                )
            self._set_state(ChildState.STARTING)
            self._lose(cause)
        return greeted, busy

    async def _watch(self, process: asyncio.subprocess.Process, pipe: ChildPipe) -> str:
        """Wait until the child ends or must be ended; returns why."""
        started = self._clock()
        tree = ProcessTree(process.pid)
        gone = asyncio.ensure_future(process.wait())
        closed = asyncio.ensure_future(pipe.closed.wait())
        try:
            while True:
                await asyncio.wait(
                    {gone, closed}, timeout=self._limits.sample_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                now = self._clock()
                if gone.done() or closed.done():
                    # It ends its side first, and is killed only where it does not go on to end: a kill hides why.
                    await asyncio.wait({gone}, timeout=_EXIT_SECONDS)
                    return "died"
                if tree.resident_bytes() > self._limits.memory_bytes:
                    return "memory"
                if not self.ready and now - started > self._limits.start_seconds:
                    return "deadline"
                if any(running.overdue(now, self._limits) for running in self._running.values()):
                    return "deadline"
        finally:
            gone.cancel()
            closed.cancel()

    def _lose(self, cause: str) -> None:
        """End every batch that was in the child."""
        now = self._clock()
        for running in set(self._running.values()):
            if running.ended.done():
                continue
            if cause == "memory":
                lost = ChildLost("The worker's process passed its memory budget.", ERROR_CATEGORY_RESOURCE)
            elif cause == "deadline":
                collateral = not running.overdue(now, self._limits)
                lost = ChildLost("No step ended within its deadline.", ERROR_CATEGORY_TIMEOUT, collateral=collateral)
            else:
                lost = ChildLost("The worker's process was lost.", ERROR_CATEGORY_RESOURCE)
            running.ended.set_exception(lost)
        self._running.clear()

    def _frame(self, frame: FromChild) -> None:
        kind = frame.WhichOneof("frame")
        if kind == "done":
            self._done(frame.done)
        elif kind == "progress":
            if (running := self._running.get(frame.progress.number)) is not None:
                # A phase alone is no step: after the first of those, silence is judged more strictly.
                running.last_seen, running.stepped = self._clock(), running.stepped or frame.progress.total > 0
                running.on_progress(frame.progress)
        elif kind == "message":
            if (running := self._running.get(frame.message.number)) is not None:
                running.last_seen = self._clock()
                running.on_message(frame.message)
        elif kind == "resident":
            self._resident = frame.resident
            self._on_change()
        elif kind == "hello":
            self._hello = frame.hello
            self._set_state(ChildState.READY)
            self._greeted.set()

    def _done(self, done: ChildDone) -> None:
        running = self._running.pop(done.number, None)
        if running is None:
            return
        self._failed_starts = 0
        running.done[done.number] = done
        running.last_seen = self._clock()
        if len(running.done) == len(running.jobs) and not running.ended.done():
            running.ended.set_result([running.done[job.number] for job in running.jobs])

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _set_state(self, state: ChildState) -> None:
        if state is not self._state:
            self._state = state
            self._on_change()


def _why(cause: str, code: int, said: str) -> str:
    """Tell why a child was not ready."""
    if cause == "memory":
        return "it passed its memory budget."
    if cause == "deadline":
        return "it was not ready in time."
    return said or (f"it was ended by signal {-code}." if code < 0 else f"it ended with status {code}.")
