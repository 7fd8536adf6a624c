"""Leases of waiting tasks for the workers that poll: one dispatcher a queue serves all polls of this replica.

A round leases for the parked polls of one kind of worker in one transaction. It starts when a poll arrives, when a task
begins to wait (noted within the process, or told by NATS from other replicas), and every second besides. Replicas take
turns on a queue by a row lock, so that two of them never serve the same turn.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache

from meshkit import metrics
from meshkit.db import DatabaseUnavailableError
from meshkit.errors import MeshError, unavailable
from meshkit.logging import get_logger
from meshkit.loops import cancel
from services.tasks.domain import SessionRecord, TaskRecord
from services.tasks.errors import session_not_found
from services.tasks.providers.domain import ProviderLimits
from services.tasks.scheduling.polls import Poll
from services.tasks.scheduling.rounds import DispatchRound
from services.tasks.store import TaskStore

_log = get_logger(__name__)

POLL_SECONDS = 1.0
# Wait before a task whose row was locked is looked at again: at once would only spin until the lock is released.
HELD_SECONDS = 0.02

_DISPATCH_SECONDS = metrics.histogram(
    "tasks_dispatch_seconds",
    "Queue wait: from acceptance to the first lease",
    ("queue", "task_type"),
    metrics.WAIT_BUCKETS,
)
_LEASES = metrics.counter("tasks_leases", "Leases given", ("queue", "task_type"))
_ROUNDS = metrics.counter("tasks_dispatch_rounds", "Dispatch rounds by whether they found work", ("queue", "found"))
# Each combination of labels is looked up once: the look-up costs more than the counting.
_dispatch_seconds = cache(_DISPATCH_SECONDS.labels)
_leases = cache(_LEASES.labels)
_rounds = cache(_ROUNDS.labels)
_REFUSALS = metrics.counter(
    "tasks_provider_refusals", "Rounds that passed waiting work over, by the gate", ("provider", "gate")
)


class Scheduler:
    """Matches polls and waiting tasks.

    Args:
        store: The database.
        costs: Expected device seconds by lane.
        weights: Shares of tenants.
        answer_bytes: Bytes of tasks that a poll is answered with; one that is larger goes alone.
        limits: What the gates of providers are held to.
        on_events: Called after a commit that wrote events.
    """

    def __init__(
        self,
        store: TaskStore,
        *,
        costs: Mapping[str, float],
        weights: Mapping[str, float],
        answer_bytes: int,
        limits: ProviderLimits | None = None,
        on_events: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._costs = costs
        self._weights = weights
        self._answer_bytes = answer_bytes
        self._limits = limits or ProviderLimits()
        self._on_events = on_events
        # By queue: where the next round begins among the lanes of providers, whether it reads their gates, and when a
        # gate opens by itself.
        self._lanes: dict[str, str] = {}
        self._watchful: dict[str, bool] = {}
        self._thorough: dict[str, bool] = {}  # whether the next round asks all polls
        self._openings: dict[str, asyncio.TimerHandle] = {}
        self._polls: dict[str, list[Poll]] = {}
        self._events: dict[str, asyncio.Event] = {}
        self._dispatchers: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    def wake(self, queue: str) -> None:
        """Note that a task waits in a queue; without a poll for it nothing happens."""
        event = self._events.get(queue)
        if event is not None and self._polls.get(queue):
            event.set()

    async def close(self) -> None:
        """End all polls without work, then the dispatchers."""
        self._closed = True
        parked = {poll for polls in self._polls.values() for poll in polls}
        for poll in parked:
            # An answer raises the worker's number, so the database has to know this poll.
            if poll.registered and not poll.busy and not poll.answer.done():
                poll.answer.set_result([])
        await cancel(self._dispatchers.values())
        for timer in self._openings.values():
            timer.cancel()
        for poll in parked:
            poll.refuse()

    def park(
        self,
        session: SessionRecord,
        *,
        sequence: int,
        max_leases: int,
        warm: frozenset[str],
        full_tenants: frozenset[str],
    ) -> Poll:
        """Begin a poll; `wait` or `abandon` has to follow.

        Args:
            session: The worker's session.
            sequence: Number of the poll.
            max_leases: Leases wanted at most.
            warm: Adapters that the worker holds.
            full_tenants: Tenants that hold their share of the worker.

        Raises:
            MeshError: `UNAVAILABLE` where the scheduler is stopping.
        """
        if self._closed:
            raise unavailable("The scheduler is stopping", reason="SCHEDULER_UNAVAILABLE")
        self._supersede(session)
        answer: asyncio.Future[list[TaskRecord]] = asyncio.get_running_loop().create_future()
        poll = Poll(session, sequence, max_leases, warm, full_tenants, answer)
        for queue in session.queues:
            self._park(queue, poll)
        return poll

    async def wait(self, poll: Poll, wait_seconds: float) -> list[TaskRecord]:
        """Wait for the work of a poll; a caller that is cancelled meanwhile has to `abandon` it.

        Args:
            poll: The poll.
            wait_seconds: How long to wait for the first lease.

        Raises:
            MeshError: `NOT_FOUND` where the session is not open any more or the number is out of step.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_seconds
        try:
            while not poll.answer.done():
                left = deadline - loop.time()
                if left <= 0 and poll.registered and not poll.busy:
                    return []
                await asyncio.wait({poll.answer}, timeout=max(left, 0.02))
            return poll.answer.result()
        finally:
            self._unpark(poll)

    async def abandon(self, poll: Poll) -> list[TaskRecord]:
        """End a poll that nobody waits for any more.

        Returns:
            Leases that a round gave it all the same: they are the caller's to give back.
        """
        self._unpark(poll)
        poll.superseded = True  # the round that works for it answers it at its end, with leases or without
        if not poll.busy:
            poll.settle()
        try:
            return await poll.answer
        except MeshError:
            return []

    def _unpark(self, poll: Poll) -> None:
        for queue in poll.session.queues:
            if poll in self._polls[queue]:
                self._polls[queue].remove(poll)

    def _supersede(self, session: SessionRecord) -> None:
        # A worker that polls again has given up its earlier call.
        for queue in session.queues:
            for poll in self._polls.get(queue, ()):
                if poll.session.id == session.id:
                    poll.superseded = True
                    if not poll.busy:
                        poll.settle()

    def _park(self, queue: str, poll: Poll) -> None:
        self._polls.setdefault(queue, []).append(poll)
        event = self._events.setdefault(queue, asyncio.Event())
        dispatcher = self._dispatchers.get(queue)
        if dispatcher is None or dispatcher.done():
            self._dispatchers[queue] = asyncio.create_task(self._dispatch(queue, event), name=f"dispatch-{queue}")
        event.set()

    async def _dispatch(self, queue: str, event: asyncio.Event) -> None:
        while True:
            timeout = POLL_SECONDS * random.uniform(0.9, 1.1) if self._polls.get(queue) else None  # noqa: S311 -- jitter
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await event.wait()
            event.clear()
            await self._serve_queue(queue)

    async def _serve_queue(self, queue: str) -> None:
        # One round for each kind of worker; see `DispatchRound`.
        for lanes in dict.fromkeys(poll.lanes for poll in self._polls.get(queue, ())):
            polls = self._take(queue, lanes)
            if polls and not await self._serve(queue, polls):
                # The database is in trouble: a round at once would fail too.
                await asyncio.sleep(0.2)
                self.wake(queue)
                return

    def _take(self, queue: str, lanes: frozenset[str]) -> list[Poll]:
        polls = []
        for poll in self._polls.get(queue, ()):
            if poll.answer.done() or poll.lanes != lanes:
                continue
            if poll.busy:
                poll.missed.add(queue)
                continue
            poll.busy = True
            polls.append(poll)
        return polls

    async def _serve(self, queue: str, polls: Sequence[Poll]) -> bool:
        work = DispatchRound(
            queue,
            polls,
            self._costs,
            self._weights,
            self._answer_bytes,
            limits=self._limits,
            first_lane=self._lanes.get(queue, ""),
            watchful=self._watchful.get(queue, False),
            thorough=self._thorough.get(queue, False),
        )
        try:
            await self._store.run_round(queue, work.run)
        except Exception as error:
            self._failed(queue, polls, error)
            return False
        else:
            self._deliver(queue, work)
            return True
        finally:
            for poll in polls:
                poll.busy = False
                poll.settle()
                for other in poll.missed:
                    self.wake(other)
                poll.missed.clear()

    def _deliver(self, queue: str, work: DispatchRound) -> None:
        _rounds(queue, str(bool(work.granted))).inc()
        for poll in work.refused:
            if not poll.answer.done():
                poll.answer.set_exception(session_not_found(poll.session.id))
        for poll, leases in work.answers.items():
            if not poll.answer.done():
                poll.answer.set_result(leases)
        for poll in work.polls:
            poll.registered = True
            poll.resting = work.resting.get(poll, poll.resting)
        if work.granted:
            _count(queue, work.granted)
            self._on_events()
        if work.again:
            self.wake(queue)
        elif work.held:
            asyncio.get_running_loop().call_later(HELD_SECONDS, self.wake, queue)
        self._lanes[queue] = work.next_lane
        self._watchful[queue] = work.watchful
        self._thorough[queue] = work.thorough
        for provider, broken in work.refused_by_gates:
            _REFUSALS.labels(provider, "breaker" if broken else "limit").inc()
        self._wake_at_opening(queue, work.gates_open_in)

    def _wake_at_opening(self, queue: str, seconds: float | None) -> None:
        """Look again when a gate opens by itself, where that is before the next poll of the database."""
        earlier = self._openings.pop(queue, None)
        if earlier is not None:
            earlier.cancel()
        if seconds is not None and seconds < POLL_SECONDS:
            self._openings[queue] = asyncio.get_running_loop().call_later(max(seconds, HELD_SECONDS), self.wake, queue)

    @staticmethod
    def _failed(queue: str, polls: Sequence[Poll], error: Exception) -> None:
        if isinstance(error, MeshError):
            _log.warning("dispatch_round_failed", queue=queue, reason=error.reason)
        else:
            _log.error("dispatch_round_failed", queue=queue, exc_info=error)
        for poll in polls:
            # A poll that the database knows waits on; the worker of a new one asks again.
            if not poll.registered:
                poll.refuse()
            # If the commit took place and its answer was lost, noting the same number again brings its leases.
            if isinstance(error, DatabaseUnavailableError):
                poll.registered = False


def _count(queue: str, granted: Sequence[TaskRecord]) -> None:
    for record in granted:
        _leases(queue, record.task_type).inc()
        if record.attempt == 1 and record.leased_at is not None:
            waited = (record.leased_at - record.created_at).total_seconds()
            trace = metrics.stored_exemplar(record.traceparent)
            _dispatch_seconds(queue, record.task_type).observe(max(0.0, waited), trace)
