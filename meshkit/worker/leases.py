"""A worker's side of `WorkerService`: sessions, polls and heartbeats; `ends` ends attempts.

Invariants:

- One poll is out at a time. Its number rises only once it was answered, so a lost answer is asked for again.
- A session lives until `lease_ttl` after the last heartbeat that got through, counted from before it was sent. After
  that every attempt is taken from its holder here, because the service gives it to another worker.
- A service that is away is asked again after a growing, jittered pause, without end. No loop ends, none spins.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable

from atelier.tasks.v1.worker_service_pb2 import (
    AttemptRef,
    CloseSessionRequest,
    HeartbeatRequest,
    Lease,
    LeaseRequest,
    LeaseResponse,
    OpenSessionRequest,
    ReleaseRequest,
    ReportRequest,
    WarmState,
)

from meshkit.errors import TRANSIENT, ErrorKind, MeshError
from meshkit.logging import get_logger
from meshkit.loops import cancel
from meshkit.moments import duration_of, seconds_of
from meshkit.worker.ends import AttemptEnds
from meshkit.worker.held import HeldLease, HeldLeases
from meshkit.worker.load import WorkerGauge
from meshkit.worker.pacing import Pauses, pause
from meshkit.worker.session import SessionProfile, WorkerCalls, WorkerSession, call

_log = get_logger(__name__)

_MAX_LEASES = 256  # bound of LeaseRequest.max_leases and of ReportRequest.progress
_MAX_FULL_TENANTS = 256  # bound of LeaseRequest.full_tenants
_FULL_POLL_SECONDS = 1.0
_REPORT_INTERVAL_SECONDS = 0.25
_WAIT_JITTER = (0.75, 1.0)


class LeaseClient:
    """Pulls leases and keeps them alive.

    Args:
        calls: The service.
        profile: What the worker says of itself.
        held: The attempts that are held.
        ends: Ends them.
        capacity: How many more attempts the worker takes now; asked before each poll.
        accept: Takes one leased attempt; must not block.
        room: Set when `capacity` may have risen.
        heartbeat_now: Set when the next heartbeat is to go at once, because something may have been cancelled.
        warm: What is in memory now.
        full_tenants: Tenants that hold their share of the worker; asked before each poll.
        fault: Why the worker takes no work, empty where it does; heartbeats tell it.
        on_session: Called with the new session's id, and with None when it is lost.
        on_empty: Called when a poll was answered with no lease.
        poll_seconds: How long a poll waits for work.
        pauses: Waits.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        calls: WorkerCalls,
        profile: SessionProfile,
        held: HeldLeases,
        ends: AttemptEnds,
        *,
        capacity: Callable[[], int],
        accept: Callable[[HeldLease], None],
        room: asyncio.Event,
        heartbeat_now: asyncio.Event,
        warm: Callable[[], WarmState] = WarmState,
        full_tenants: Callable[[], Collection[str]] = tuple,
        fault: Callable[[], str] = str,
        on_session: Callable[[str | None], None] = lambda _: None,
        on_empty: Callable[[], None] = lambda: None,
        poll_seconds: float = 20.0,
        pauses: Pauses | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calls = calls
        self._profile = profile
        self._held = held
        self._ends = ends
        self._capacity = capacity
        self._accept = accept
        self._room = room
        self._heartbeat_now = heartbeat_now
        self._warm = warm
        self._full_tenants = full_tenants
        self._fault = fault
        self._on_session = on_session
        self._on_empty = on_empty
        self._poll_seconds = poll_seconds
        self._pauses = pauses or Pauses()
        self._clock = clock
        self._gauge = WorkerGauge()
        self._session: WorkerSession | None = None
        self._draining = False
        self._runner: asyncio.Task[None] | None = None
        self._poller: asyncio.Task[None] | None = None
        self._asking: asyncio.Future[LeaseResponse] | None = None

    @property
    def session(self) -> WorkerSession | None:
        """The session, while there is one."""
        return self._session

    def start(self) -> None:
        """Open a session and lease; returns at once."""
        assert self._runner is None, "a lease client starts once"
        self._runner = asyncio.get_running_loop().create_task(self._run(), name="lease-client")

    def recall(self) -> None:
        """Take back the poll that is out: what it would bring could not be done now. The next one waits for room.

        Where it was answered in this moment, that answer is lost, and the next poll asks for it again.
        """
        if self._asking is not None:
            self._asking.cancel()
        self._heartbeat_now.set()

    def drain(self) -> None:
        """Take no more work. Attempts that are held stay held until they are ended or released."""
        self._draining = True
        if self._poller is not None:
            self._poller.cancel()
        elif self._runner is not None and self._session is None:
            self._runner.cancel()
        self._heartbeat_now.set()  # the service learns of it at once

    async def close(self) -> None:
        """Hand back what is still held and end the session."""
        self.drain()
        session = self._session
        if session is not None:
            await self._ends.release(self._held.all())
        if self._runner is not None:
            await cancel([self._runner])
        await self._ends.close()
        if session is not None and not session.lost.is_set():
            with contextlib.suppress(MeshError):  # it expires by itself
                await call(self._calls.CloseSession, CloseSessionRequest(session_id=session.id), timeout=3.0)
            self._lose_session(session)

    async def _run(self) -> None:
        while not self._draining:
            session = await self._open()
            self._session = session
            self._on_session(session.id)
            self._poller = asyncio.create_task(self._kept(self._poll, session), name="lease-poll")
            loops = [
                self._poller,
                asyncio.create_task(self._kept(self._beat, session), name="lease-heartbeat"),
                asyncio.create_task(self._kept(self._report, session), name="lease-report"),
            ]
            try:
                await session.lost.wait()
            finally:
                await cancel(loops)
                self._poller = None

    async def _kept(self, body: Callable[[WorkerSession], Awaitable[None]], session: WorkerSession) -> None:
        """Restart a loop that an error ended. Without its polls a worker would live on and take no work."""
        failures = 0
        while True:
            try:
                await body(session)
            except Exception:
                failures += 1
                _log.exception("lease_loop_failed", loop=body.__name__, failures=failures)
                await self._pauses.after(failures, session.lost)
            else:
                return

    async def _open(self) -> WorkerSession:
        profile, failures = self._profile, 0
        request = OpenSessionRequest(
            name=profile.name,
            kind=profile.kind,
            queues=profile.queues,
            slots=profile.slots,
            pairs=[pair.to_wire() for pair in profile.pairs],
        )
        while True:
            asked = self._clock()
            try:
                answer = await call(self._calls.OpenSession, request, timeout=10.0)
            except MeshError as error:
                failures += 1
                _log.warning("session_not_opened", kind=error.kind.value, why=error.message, failures=failures)
                await self._pauses.after(failures)
                continue
            ttl = seconds_of(answer.lease_ttl) or 15.0
            interval = seconds_of(answer.heartbeat_interval) or ttl / 3
            _log.info("session_opened", session_id=answer.session_id, ttl_seconds=ttl)
            return WorkerSession(answer.session_id, ttl, min(interval, ttl / 2), asked + ttl)

    def _lose_session(self, session: WorkerSession) -> None:
        if session.lost.is_set():
            return
        session.lost.set()
        self._held.lose(session)
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
            asked, request = self._clock(), self._request(session, wanted)
            try:
                answer = await self._answer(request)
            except MeshError as error:
                if self._refused(session, error):
                    return
                failures += 1
                await self._pauses.after(failures, session.lost)
                continue
            if answer is None:
                continue
            session.answered = request.sequence
            if not answer.leases:
                self._on_empty()
            refused = [held for lease in answer.leases if (held := self._take(lease, session)) is not None]
            if refused:
                await self._ends.release(refused)
                failures += 1
                await self._pauses.after(failures, session.lost)
                continue
            given = len(answer.leases)
            if (seconds := pause(given, wanted, self._clock() - asked)) > 0:
                await self._pauses.sleep(seconds)
            # A service that answers an empty poll at once, for whatever reason, must not be asked without a pause.
            hasty = given == 0 and self._clock() - asked < min(0.1, self._poll_seconds / 2)
            failures = failures + 1 if hasty else 0
            if hasty:
                await self._pauses.after(failures, session.lost)

    def _request(self, session: WorkerSession, wanted: int) -> LeaseRequest:
        full = sorted(self._full_tenants())[:_MAX_FULL_TENANTS]
        # A poll that waits does not learn that a tenant has room again: the next one says so.
        # Workers that polled in the same moment, as after a start of the service, do not do so for ever.
        wait = self._poll_seconds * random.uniform(*_WAIT_JITTER)  # noqa: S311 -- spreads the fleet, not a secret
        return LeaseRequest(
            session_id=session.id,
            sequence=session.answered + 1,
            max_leases=wanted,
            wait=duration_of(min(wait, _FULL_POLL_SECONDS) if full else wait),
            warm=self._warm(),
            full_tenants=full,
        )

    def _refused(self, session: WorkerSession, error: MeshError) -> bool:
        """Take the error of a poll; returns whether the session is lost."""
        if error.kind is ErrorKind.NOT_FOUND:
            _log.warning("session_unknown", session_id=session.id)
            self._lose_session(session)
            return True
        if error.kind not in TRANSIENT:
            _log.error("poll_refused", kind=error.kind.value, why=error.message)
        return False

    async def _answer(self, request: LeaseRequest) -> LeaseResponse | None:
        """Poll; None where the poll was recalled."""
        asking = self._asking = asyncio.ensure_future(
            call(self._calls.Lease, request, timeout=self._poll_seconds + 5.0)
        )
        try:
            await asyncio.wait({asking})
            return None if asking.cancelled() else asking.result()
        finally:
            self._asking = None
            asking.cancel()

    def _take(self, lease: Lease, session: WorkerSession) -> HeldLease | None:
        """Pass an attempt on; return it where it was not accepted."""
        held = HeldLease(lease, session)
        if not self._held.add(held):
            return None
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
                await self._pauses.after(failures, session.lost, session.ttl / 6)
            else:
                jitter = random.uniform(0.9, 1.0)  # noqa: S311 -- spreads the fleet, not a secret
                await self._pauses.wait(self._heartbeat_now, session.interval * jitter)
            self._heartbeat_now.clear()
            asked = self._clock()
            left = session.alive_until - asked
            if left <= 0:
                _log.warning("session_expired", session_id=session.id, held=len(self._held))
                self._lose_session(session)
                return
            request = HeartbeatRequest(
                session_id=session.id,
                held=[held.ref for held in self._held.all()],
                warm=self._warm(),
                draining=self._draining,
                load=self._gauge.read(self._ends.completed, self._fault()),
            )
            try:
                answer = await call(self._calls.Heartbeat, request, timeout=min(left, session.ttl / 3))
            except MeshError as error:
                if error.kind is ErrorKind.NOT_FOUND:
                    _log.warning("session_unknown", session_id=session.id, held=len(self._held))
                    self._lose_session(session)
                    return
                failures += 1
                _log.warning("heartbeat_failed", kind=error.kind.value, failures=failures)
                continue
            failures = 0
            session.ttl = seconds_of(answer.lease_ttl) or session.ttl
            session.alive_until = max(session.alive_until, asked + session.ttl)
            await self._give_up(session, answer.give_up, answer.ended)

    async def _give_up(self, session: WorkerSession, refs: Iterable[AttemptRef], ended: Iterable[AttemptRef]) -> None:
        unknown, over = [], {(ref.job_id, ref.attempt) for ref in ended}
        for ref in refs:
            key = (ref.job_id, ref.attempt)
            if (held := self._held.get(key)) is not None:
                held.lose("ended" if key in over else "given_up")  # its holder stops it, then releases it
            elif not self._held.has_ended(key):
                unknown.append(ref)
        if unknown:
            with contextlib.suppress(MeshError):  # the next heartbeat names them again
                request = ReleaseRequest(session_id=session.id, refs=unknown)
                await call(self._calls.Release, request, timeout=5.0)

    async def _report(self, session: WorkerSession) -> None:
        while True:
            await self._held.progressed.wait()
            # Also before the first report: an attempt that ends within that time needs none.
            await self._pauses.sleep(_REPORT_INTERVAL_SECONDS)
            if batch := self._held.take_progress(_MAX_LEASES):
                # Lost progress is not repeated: the next report replaces it.
                with contextlib.suppress(MeshError):
                    request = ReportRequest(session_id=session.id, progress=batch)
                    answer = await call(self._calls.Report, request, timeout=5.0)
                    await self._give_up(session, answer.give_up, answer.ended)
