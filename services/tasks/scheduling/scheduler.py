"""Leases of waiting tasks for the workers that poll: one dispatcher a queue serves all polls of this replica.

A round leases for the parked polls of one kind of worker in one transaction. It starts when a poll arrives, when a task
begins to wait (noted within the process, or told by NATS from other replicas), and every second besides. Replicas take
turns on a queue by a row lock, so that two of them never serve the same turn.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from uuid import UUID

from meshkit import metrics
from meshkit.db import DatabaseUnavailableError
from meshkit.errors import MeshError, unavailable
from meshkit.logging import get_logger
from meshkit.loops import cancel
from services.tasks.domain import SessionRecord, TaskRecord
from services.tasks.errors import session_not_found
from services.tasks.scheduling.fairness import Candidate, Contender, charge_at_lease, prefer_warm, share, weight_of
from services.tasks.scheduling.polls import Poll
from services.tasks.store import Grant, PollEntry, RegisteredPoll, RoundStore, TaskStore

_log = get_logger(__name__)

LOOK_AHEAD = 16
MAX_ROUND = 512
POLL_SECONDS = 1.0
# Wait before a task whose row was locked is looked at again: at once would only spin until the lock is released.
HELD_SECONDS = 0.02

_DISPATCH_SECONDS = metrics.histogram(
    "tasks_dispatch_seconds", "From acceptance to the first lease", ("queue", "task_type")
)
_LEASES = metrics.counter("tasks_leases", "Leases given", ("queue", "task_type"))
_ROUNDS = metrics.counter("tasks_dispatch_rounds", "Dispatch rounds by whether they found work", ("queue", "found"))


class Scheduler:
    """Matches polls and waiting tasks.

    Args:
        store: The database.
        costs: Expected device seconds by lane.
        weights: Shares of tenants.
        answer_bytes: Bytes of tasks that a poll is answered with; one that is larger goes alone.
        on_events: Called after a commit that wrote events.
    """

    def __init__(
        self,
        store: TaskStore,
        *,
        costs: Mapping[str, float],
        weights: Mapping[str, float],
        answer_bytes: int,
        on_events: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._costs = costs
        self._weights = weights
        self._answer_bytes = answer_bytes
        self._on_events = on_events
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
        work = DispatchRound(queue, polls, self._costs, self._weights, self._answer_bytes)
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
        _ROUNDS.labels(queue, str(bool(work.granted))).inc()
        for poll in work.refused:
            if not poll.answer.done():
                poll.answer.set_exception(session_not_found(poll.session.id))
        for poll, leases in work.answers.items():
            if not poll.answer.done():
                poll.answer.set_result(leases)
        for poll in work.polls:
            poll.registered = True
        if work.granted:
            _count(queue, work.granted)
            self._on_events()
        if work.again:
            self.wake(queue)
        elif work.held:
            asyncio.get_running_loop().call_later(HELD_SECONDS, self.wake, queue)

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


class DispatchRound:
    """One round: leases waiting tasks for parked polls in one transaction.

    Before: all polls serve the same lanes, are marked busy by the scheduler, so that no other round of this process
    works for them, and the transaction is open and empty.

    During: the round changes the database and its own fields alone. No poll is answered, because the transaction may
    still fail.

    After the commit: `answers`, `refused`, `granted`, `again` and `held` say what the scheduler delivers. Every task in
    `answers` is EXECUTING, leased to the session of its poll under the number of that poll. A session that ended or
    polled elsewhere is in `refused` and has no lease; a draining one has none and is not refused. After a rollback the
    fields mean nothing, and the round is thrown away.

    Lock order: sessions in the order of their ids (`register` or `hold`), the queue's row, which rounds of other
    replicas wait for (`hold`), tasks with SKIP LOCKED (`grant`), then counters in the order of tenants and lanes.
    Candidates are read only after the queue is held, so that two rounds never serve the same turn. Polls of different
    lanes take rounds of their own: the second of two in one transaction would lock tenants' rows out of order.

    Only `Scheduler._serve` makes a round, and only `TaskStore.run_round` runs it, once.

    Args:
        queue: The queue.
        polls: The polls it serves, all of the same lanes.
        costs: Expected device seconds by lane.
        weights: Shares of tenants.
        answer_bytes: Bytes of tasks that a poll is answered with.
    """

    def __init__(
        self,
        queue: str,
        polls: Sequence[Poll],
        costs: Mapping[str, float],
        weights: Mapping[str, float],
        answer_bytes: int,
    ) -> None:
        self.queue = queue
        self.polls = polls
        self.answers: dict[Poll, list[TaskRecord]] = {}
        self.refused: list[Poll] = []
        self.granted: list[TaskRecord] = []
        self.again = False
        self.held = False
        self._confirmed: set[Poll] = set()
        self._draining: set[Poll] = set()
        self._costs = costs
        self._weights = weights
        self._answer_bytes = answer_bytes

    async def run(self, store: RoundStore) -> None:
        """Run the round inside its transaction."""
        lanes = sorted(self.polls[0].lanes)
        new = [poll for poll in self.polls if not poll.registered]
        known, contenders = await store.register([_entry(poll) for poll in new], lanes, _limit(self.polls))
        self._note(new, known)
        if contenders:
            await self._serve(store, lanes, contenders)

    def _note(self, new: Sequence[Poll], known: Mapping[UUID, RegisteredPoll]) -> None:
        for poll in new:
            noted = known.get(poll.session.id)
            if noted is None:
                self.refused.append(poll)
                continue
            self._confirmed.add(poll)
            if noted.leases:
                self.answers[poll] = list(noted.leases)
            if noted.draining:
                self._draining.add(poll)

    def _confirm(self, asked: Sequence[Poll], confirmed: Mapping[PollEntry, bool]) -> None:
        """Refuse polls whose session ended, or polled elsewhere, while they were parked; keep draining ones waiting.

        A task leased to such a session would be lost: the expiry that gives its leases back is over already.
        """
        for poll in asked:
            draining = confirmed.get(_entry(poll))
            if draining is None:
                self.refused.append(poll)
                continue
            self._confirmed.add(poll)
            # To refuse it would end its session and the attempts it still runs: it waits until its time is over.
            if draining:
                self._draining.add(poll)

    def _open(self) -> list[Poll]:
        """Return the polls that may be given work."""
        return [
            poll
            for poll in self.polls
            if poll not in self.answers and poll not in self.refused and poll not in self._draining
        ]

    async def _serve(self, store: RoundStore, lanes: Sequence[str], contenders: Sequence[Contender]) -> None:
        polls = self._open()
        if not polls:
            return
        # Another replica may have served these tenants before the queue was held: the next round sees the others.
        wanted = self._share(contenders, polls)
        if not wanted:
            return
        ahead = LOOK_AHEAD if any(poll.warm for poll in polls) else 0
        asked = [poll for poll in self.polls if poll not in self._confirmed and poll not in self.refused]
        confirmed, contenders, candidates = await store.hold(
            [_entry(poll) for poll in asked], {name: n + ahead for name, n in wanted.items()}, lanes, _limit(polls)
        )
        self._confirm(asked, confirmed)
        polls = self._open()
        if not polls:
            return
        capacity = _capacity(polls)
        waiting: dict[str, list[Candidate]] = {}
        for candidate in candidates:
            waiting.setdefault(candidate.tenant, []).append(candidate)
        counted = {contender.tenant for contender in contenders}
        empty = [tenant for tenant in wanted if tenant in counted and tenant not in waiting]
        passed_over = not self._share(contenders, polls).keys() <= wanted.keys()
        self.again = bool(empty) or passed_over
        grants, owners, virtual_time = self._choose(contenders, waiting, polls, capacity)
        if empty:
            await store.recount(empty, list(waiting))
        if not grants:
            return
        for record in await store.grant(grants, virtual_time):
            self.answers.setdefault(owners[record.id], []).append(record)
            self.granted.append(record)
        self.held = len(self.granted) < len(grants)

    def _share(self, contenders: Sequence[Contender], polls: Sequence[Poll]) -> dict[str, int]:
        """How many tasks of each tenant these polls may take; more than fit where not all of them take the same."""
        wanted: dict[str, int] = {}
        refused = [poll.full_tenants for poll in polls]
        for full in {frozenset.intersection(*refused), frozenset.union(*refused)}:
            open_to = [contender for contender in contenders if contender.tenant not in full]
            for tenant, count in share(open_to, _capacity(polls), self._costs, self._weights).items():
                wanted[tenant] = max(count, wanted.get(tenant, 0))
        return wanted

    def _choose(
        self,
        contenders: Sequence[Contender],
        waiting: dict[str, list[Candidate]],
        polls: Sequence[Poll],
        capacity: int,
    ) -> tuple[list[Grant], dict[UUID, Poll], float]:
        """Deal tasks out in the order of their tenants' virtual time, to the polls in turn."""
        clocks = {contender.tenant: contender.virtual_time for contender in contenders if contender.tenant in waiting}
        heap = [(clock, tenant) for tenant, clock in clocks.items()]
        heapq.heapify(heap)
        turns = deque((poll, poll.capacity, self._answer_bytes) for poll in polls)
        grants: list[Grant] = []
        owners: dict[UUID, Poll] = {}
        latest = 0.0
        while heap and turns and len(grants) < capacity:
            clock, tenant = heapq.heappop(heap)
            turn = next((index for index, (poll, *_) in enumerate(turns) if tenant not in poll.full_tenants), None)
            if turn is None:
                continue
            poll, left, room = turns[turn]
            del turns[turn]
            tasks = waiting[tenant]
            place = prefer_warm(tasks, poll.warm, look_ahead=LOOK_AHEAD)
            task = tasks[place]
            if task.bytes > room and room < self._answer_bytes:
                # The poll's answer is full: its worker asks again at once, and others may take this task.
                heapq.heappush(heap, (clock, tenant))
                continue
            del tasks[place]
            cost = self._costs.get(task.lane, 1.0)
            charge = charge_at_lease(cost, task.charged, weight_of(tenant, self._weights))
            grants.append(
                Grant(
                    task.id,
                    task.lane,
                    poll.session.id,
                    poll.sequence,
                    poll.session.kind,
                    poll.session.name,
                    cost,
                    charge,
                )
            )
            owners[task.id] = poll
            latest = max(latest, clock)
            if tasks:
                heapq.heappush(heap, (clock + charge, tenant))
            if left > 1:
                turns.append((poll, left - 1, room - task.bytes))
        return grants, owners, latest


def _count(queue: str, granted: Sequence[TaskRecord]) -> None:
    for record in granted:
        _LEASES.labels(queue, record.task_type).inc()
        if record.attempt == 1 and record.leased_at is not None:
            waited = (record.leased_at - record.created_at).total_seconds()
            _DISPATCH_SECONDS.labels(queue, record.task_type).observe(max(0.0, waited))


def _entry(poll: Poll) -> PollEntry:
    return PollEntry(poll.session.id, poll.sequence)


def _capacity(polls: Sequence[Poll]) -> int:
    return min(MAX_ROUND, sum(poll.capacity for poll in polls))


def _limit(polls: Sequence[Poll]) -> int:
    # A tenant whose counter is wrong takes a place, and so does one that no poll takes: read a few more than needed.
    return _capacity(polls) + 8 + max(len(poll.full_tenants) for poll in polls)
