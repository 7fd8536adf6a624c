"""A worker's side of `WorkerService`: a session, polls, heartbeats, and the ends of attempts.

What it holds to:

- One poll is out at a time; its number rises only once it was answered, so a lost answer is asked for again.
- The session lives until `lease_ttl` after the last heartbeat that got through, counted from before it was sent. Once
  that has passed every attempt is taken from its holder here, because the service gives it to another worker.
- A service that is away is asked again after a growing, jittered pause, for ever: no loop ends, none spins.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import grpc
from atelier.tasks.v1.enums_pb2 import ErrorCategory
from atelier.tasks.v1.task_pb2 import TaskResult
from atelier.tasks.v1.worker_service_pb2 import (
    AttemptRef,
    CloseSessionRequest,
    CompleteManyRequest,
    CompleteManyResponse,
    Completion,
    FailRequest,
    HeartbeatRequest,
    Lease,
    LeaseRequest,
    OpenSessionRequest,
    Progress,
    ReleaseRequest,
    ReportRequest,
    ResultObject,
    WarmState,
)
from google.protobuf.duration_pb2 import Duration

from meshkit.errors import TRANSIENT, ErrorKind, MeshError
from meshkit.logging import get_logger
from meshkit.loops import cancel
from meshkit.status import from_rpc_error
from meshkit.worker.completions import Completions
from meshkit.worker.pacing import pause
from meshkit.worker.session import (
    Backoff,
    HeldLease,
    Key,
    ReportOutcome,
    UnaryMethod,
    WorkerCalls,
    WorkerProfile,
    WorkerSession,
)

_log = get_logger(__name__)

_MAX_LEASES = 256  # bound of LeaseRequest.max_leases and of ReportRequest.progress
_REPORT_INTERVAL_SECONDS = 0.25
_END_SECONDS = 10.0
_ENDED_KEPT = 4096

_RequestT = TypeVar("_RequestT")
_ResponseT = TypeVar("_ResponseT")


class LeaseClient:
    """Pulls leases, keeps them alive and ends them.

    Args:
        calls: The service.
        profile: What the worker says of itself.
        capacity: How many more attempts the worker takes now; asked before each poll.
        accept: Takes one leased attempt; must not block.
        warm: What is resident now.
        on_session: Called with the new session's id, and with None when it is lost.
        poll_seconds: How long a poll waits for work.
        backoff: Pauses after failures.
        clock: Monotonic seconds.
        sleep: Waits so many of these seconds.
    """

    def __init__(
        self,
        calls: WorkerCalls,
        profile: WorkerProfile,
        *,
        capacity: Callable[[], int],
        accept: Callable[[HeldLease], None],
        warm: Callable[[], WarmState] = WarmState,
        on_session: Callable[[str | None], None] = lambda _: None,
        poll_seconds: float = 20.0,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._calls = calls
        self._profile = profile
        self._capacity = capacity
        self._accept = accept
        self._warm = warm
        self._on_session = on_session
        self._poll_seconds = poll_seconds
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._sleep = sleep
        self._session: WorkerSession | None = None
        self._held: dict[Key, HeldLease] = {}
        self._ended: OrderedDict[Key, None] = OrderedDict()
        self._progress: dict[Key, Progress] = {}
        self._progressed = asyncio.Event()
        self._completions = Completions(self._complete_many, held=lambda: len(self._held), sleep=sleep)
        self._room = asyncio.Event()
        self._news = asyncio.Event()
        self._draining = False
        self._runner: asyncio.Task[None] | None = None
        self._poller: asyncio.Task[None] | None = None

    @property
    def session(self) -> WorkerSession | None:
        """The session, while there is one."""
        return self._session

    @property
    def held(self) -> Sequence[HeldLease]:
        """Attempts received and not ended."""
        return list(self._held.values())

    def start(self) -> None:
        """Start to lease; returns before a session is open."""
        assert self._runner is None, "a lease client starts once"
        self._runner = asyncio.get_running_loop().create_task(self._run(), name="lease-client")

    def drain(self) -> None:
        """Take no more work; what is held lives on until it is ended or released."""
        self._draining = True
        if self._poller is not None:
            self._poller.cancel()
        elif self._runner is not None and self._session is None:
            self._runner.cancel()
        self._news.set()  # the service learns of it at once

    async def close(self) -> None:
        """Hand back what is still held and end the session."""
        self.drain()
        session = self._session
        if session is not None:
            await self.release(self.held)
        if self._runner is not None:
            await cancel([self._runner])
        await self._completions.close()
        if session is not None and not session.lost.is_set():
            with contextlib.suppress(MeshError):  # it expires by itself
                await self._call(self._calls.CloseSession, CloseSessionRequest(session_id=session.id), timeout=3.0)
            self._lose_session(session)

    def room(self) -> None:
        """Tell that `capacity` may have risen."""
        self._room.set()

    def news(self) -> None:
        """Tell that something may have been cancelled: the next heartbeat goes at once."""
        self._news.set()

    def progress(self, held: HeldLease, percent: float, *, step: int, total: int, preview: bytes = b"") -> None:
        """Note the progress of an attempt; the newest is sent, a few times a second."""
        if held.lost is not None or held.key not in self._held:
            return
        before = self._progress.get(held.key)
        if not preview and before is not None:
            preview = before.preview
        self._progress[held.key] = Progress(
            ref=held.ref, progress=min(max(percent, 0.0), 100.0), step=step, total_steps=total, preview=preview
        )
        self._progressed.set()

    async def complete(
        self, held: HeldLease, result: TaskResult, objects: Iterable[ResultObject], device_seconds: float
    ) -> ReportOutcome:
        """End an attempt with its result.

        Raises:
            MeshError: the service does not take this result, now or ever.
        """
        completion = Completion(ref=held.ref, result=result, objects=objects, device_seconds=device_seconds)
        return await self._end(held, lambda: self._completions.send(held.session.id, completion))

    async def fail(
        self,
        held: HeldLease,
        message: str,
        category: ErrorCategory.ValueType,
        *,
        retryable: bool,
        device_seconds: float = 0.0,
    ) -> bool:
        """End an attempt with an error; returns False where the service has not taken it."""
        request = FailRequest(
            session_id=held.session.id,
            ref=held.ref,
            message=message[:4096],
            category=category,
            retryable=retryable,
            device_seconds=device_seconds,
        )
        return (
            await self._end(held, lambda: self._call(self._calls.Fail, request, timeout=_END_SECONDS))
            is ReportOutcome.TAKEN
        )

    async def release(self, attempts: Sequence[HeldLease]) -> None:
        """Hand attempts back that did not begin, or confirm that cancelled ones have ended."""
        by_session: dict[WorkerSession, list[HeldLease]] = {}
        for held in attempts:
            by_session.setdefault(held.session, []).append(held)
        for session, group in by_session.items():
            await self._release(session, [held.ref for held in group])
            for held in group:
                self._drop(held)

    async def _release(self, session: WorkerSession, refs: Sequence[AttemptRef]) -> None:
        request = ReleaseRequest(session_id=session.id, refs=refs)
        failures = 0
        while not session.lost.is_set():
            try:
                await self._call(self._calls.Release, request, timeout=5.0)
            except MeshError as error:
                if error.kind not in TRANSIENT:
                    return
                failures += 1
                await self._pause(failures, session)
            else:
                return

    async def _end(self, held: HeldLease, send: Callable[[], Awaitable[object]]) -> ReportOutcome:
        failures = 0
        fate = ReportOutcome.LOST  # what was never sent was not taken
        while True:
            # One that was sent without an answer is asked about once more where it was lost meanwhile: the answer tells
            # whether it was taken before.
            last = held.lost is not None or held.session.lost.is_set()
            if last and fate is ReportOutcome.LOST:
                break
            fate = ReportOutcome.UNKNOWN
            try:
                await send()
            except MeshError as error:
                if error.kind is ErrorKind.INVALID:
                    raise
                if error.kind not in TRANSIENT:
                    _log.warning(
                        "attempt_refused", job_id=held.lease.job_id, attempt=held.lease.attempt, why=error.reason
                    )
                    self._drop(held)
                    return ReportOutcome.LOST
                if last:
                    break
                failures += 1
                await self._pause(failures, held.session)
            else:
                self._drop(held)
                return ReportOutcome.TAKEN
        # Cancelled by its caller while the result was on its way: the slot counts as busy until that is confirmed.
        await self.release([held])
        return fate

    async def _complete_many(self, request: CompleteManyRequest) -> CompleteManyResponse:
        return await self._call(self._calls.CompleteMany, request, timeout=_END_SECONDS)

    def _drop(self, held: HeldLease) -> None:
        held.forget()
        if self._held.pop(held.key, None) is not None:
            self._ended[held.key] = None
            if len(self._ended) > _ENDED_KEPT:
                self._ended.popitem(last=False)
        self._progress.pop(held.key, None)
        self._room.set()

    async def _run(self) -> None:
        while not self._draining:
            session = await self._open()
            self._session = session
            self._on_session(session.id)
            self._poller = asyncio.create_task(self._kept(self._poll, session), name="lease-poll")
            companions = [
                self._poller,
                asyncio.create_task(self._kept(self._beat, session), name="lease-heartbeat"),
                asyncio.create_task(self._kept(self._report, session), name="lease-report"),
            ]
            try:
                await session.lost.wait()
            finally:
                await cancel(companions)
                self._poller = None

    async def _kept(self, body: Callable[[WorkerSession], Awaitable[None]], session: WorkerSession) -> None:
        """Begin a loop again that a fault ended: a worker whose polls died would live on and take nothing."""
        failures = 0
        while True:
            try:
                await body(session)
            except Exception:
                failures += 1
                _log.exception("lease_loop_failed", loop=body.__name__, failures=failures)
                await self._pause(failures, session)
            else:
                return

    async def _open(self) -> WorkerSession:
        profile, failures = self._profile, 0
        request = OpenSessionRequest(
            name=profile.name,
            kind=profile.kind,
            queues=profile.queues,
            slots=profile.slots,
            task_types=profile.task_types,
            provider_types=profile.provider_types,
        )
        while True:
            asked = self._clock()
            try:
                answer = await self._call(self._calls.OpenSession, request, timeout=10.0)
            except MeshError as error:
                failures += 1
                _log.warning("session_not_opened", kind=error.kind.value, why=error.message, failures=failures)
                await self._sleep(self._backoff.pause(failures))
                continue
            ttl = _seconds(answer.lease_ttl) or 15.0
            interval = _seconds(answer.heartbeat_interval) or ttl / 3
            _log.info("session_opened", session_id=answer.session_id, ttl_seconds=ttl)
            return WorkerSession(answer.session_id, ttl, min(interval, ttl / 2), asked + ttl)

    def _lose_session(self, session: WorkerSession) -> None:
        if session.lost.is_set():
            return
        session.lost.set()
        for held in [held for held in self._held.values() if held.session is session]:
            held.lose("expired")
            self._drop(held)
        self._progress.clear()
        self._session = None
        self._on_session(None)

    async def _poll(self, session: WorkerSession) -> None:
        failures = 0
        while not self._draining:
            self._room.clear()
            wanted = min(self._capacity(), _MAX_LEASES)
            if wanted <= 0:
                await self._room.wait()
                continue
            asked = self._clock()
            request = LeaseRequest(
                session_id=session.id,
                sequence=session.answered + 1,
                max_leases=wanted,
                wait=_duration(self._poll_seconds),
                warm=self._warm(),
            )
            try:
                answer = await self._call(self._calls.Lease, request, timeout=self._poll_seconds + 5.0)
            except MeshError as error:
                if error.kind is ErrorKind.NOT_FOUND:
                    _log.warning("session_unknown", session_id=session.id)
                    self._lose_session(session)
                    return
                failures += 1
                if error.kind not in TRANSIENT:
                    _log.error("poll_refused", kind=error.kind.value, why=error.message)
                await self._pause(failures, session)
                continue
            session.answered = request.sequence
            refused = [held for lease in answer.leases if (held := self._take(lease, session)) is not None]
            if refused:
                await self.release(refused)
                failures += 1
                await self._pause(failures, session)
                continue
            given = len(answer.leases)
            if (seconds := pause(given, wanted, self._clock() - asked)) > 0:
                await self._sleep(seconds)
            # A service that answers an empty poll at once, for whatever reason, must not be asked in a circle.
            hasty = given == 0 and self._clock() - asked < min(0.1, self._poll_seconds / 2)
            failures = failures + 1 if hasty else 0
            if hasty:
                await self._pause(failures, session)

    def _take(self, lease: Lease, session: WorkerSession) -> HeldLease | None:
        """Hand an attempt to its holder; returns one that nobody took."""
        held = HeldLease(lease, session)
        if held.key in self._held:
            return None
        self._held[held.key] = held
        self._ended.pop(held.key, None)
        try:
            self._accept(held)
        except Exception:
            _log.exception("attempt_not_accepted", job_id=lease.job_id, attempt=lease.attempt)
            return held
        return None

    async def _beat(self, session: WorkerSession) -> None:
        failures = 0
        while True:
            if failures:
                # Several tries fit into what is left of the time to live.
                await self._pause(failures, session, longest=session.ttl / 6)
            else:
                jitter = random.uniform(0.9, 1.0)  # noqa: S311 -- spreads the fleet, not a secret
                await self._wait(self._news, session.interval * jitter)
            self._news.clear()
            asked = self._clock()
            left = session.alive_until - asked
            if left <= 0:
                _log.warning("session_expired", session_id=session.id, held=len(self._held))
                self._lose_session(session)
                return
            request = HeartbeatRequest(
                session_id=session.id,
                held=[held.ref for held in self._held.values()],
                warm=self._warm(),
                draining=self._draining,
            )
            try:
                answer = await self._call(self._calls.Heartbeat, request, timeout=min(left, session.ttl / 3))
            except MeshError as error:
                if error.kind is ErrorKind.NOT_FOUND:
                    _log.warning("session_unknown", session_id=session.id, held=len(self._held))
                    self._lose_session(session)
                    return
                failures += 1
                _log.warning("heartbeat_failed", kind=error.kind.value, failures=failures)
                continue
            failures = 0
            session.ttl = _seconds(answer.lease_ttl) or session.ttl
            session.alive_until = max(session.alive_until, asked + session.ttl)
            await self._give_up(session, answer.give_up)

    async def _give_up(self, session: WorkerSession, refs: Iterable[AttemptRef]) -> None:
        strangers = []
        for ref in refs:
            key = (ref.job_id, ref.attempt)
            if (held := self._held.get(key)) is not None:
                held.lose("given_up")  # its holder stops it, then releases it
            elif key not in self._ended:
                strangers.append(ref)
        if strangers:
            with contextlib.suppress(MeshError):  # the next heartbeat names them again
                request = ReleaseRequest(session_id=session.id, refs=strangers)
                await self._call(self._calls.Release, request, timeout=5.0)

    async def _report(self, session: WorkerSession) -> None:
        while True:
            await self._progressed.wait()
            # Before the first one too: what ends within that time needs no progress, and its end is the better news.
            await self._sleep(_REPORT_INTERVAL_SECONDS)
            self._progressed.clear()
            batch = [self._progress.pop(key) for key in list(self._progress)[:_MAX_LEASES]]
            if self._progress:
                self._progressed.set()
            if batch:
                # Progress that is lost is overtaken by the next; only the ends of attempts are repeated.
                with contextlib.suppress(MeshError):
                    request = ReportRequest(session_id=session.id, progress=batch)
                    answer = await self._call(self._calls.Report, request, timeout=5.0)
                    await self._give_up(session, answer.give_up)

    async def _call(
        self,
        method: UnaryMethod[_RequestT, _ResponseT],
        request: _RequestT,
        *,
        timeout: float,  # noqa: ASYNC109 -- gRPC's own
    ) -> _ResponseT:
        try:
            return await method(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def _pause(self, failures: int, session: WorkerSession, longest: float = 60.0) -> None:
        """Wait after a failure, though not beyond the session's loss."""
        await self._wait(session.lost, min(self._backoff.pause(failures), longest))

    async def _wait(self, event: asyncio.Event, seconds: float) -> None:
        """Wait for the event, at most so many seconds of the injected clock."""
        waiters = {asyncio.ensure_future(event.wait()), asyncio.ensure_future(self._sleep(seconds))}
        try:
            await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiters:
                waiter.cancel()


def _seconds(duration: Duration) -> float:
    return float(duration.seconds) + duration.nanos / 1e9


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration
