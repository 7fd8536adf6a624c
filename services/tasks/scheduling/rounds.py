"""One dispatch round: which waiting tasks are leased to which of the parked polls."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from uuid import UUID

from services.tasks.domain import TaskRecord, parts_of
from services.tasks.providers.domain import GateName, ProviderLimits
from services.tasks.providers.gates import Passage, gate_of, gates_of, trial_name
from services.tasks.scheduling.fairness import (
    Candidate,
    Contender,
    charge_at_lease,
    expected_cost,
    prefer_warm,
    share,
    weight_of,
)
from services.tasks.scheduling.polls import Poll
from services.tasks.store import Grant, PollEntry, RegisteredPoll, RoundStore

LOOK_AHEAD = 16
MAX_ROUND = 512


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
    replicas wait for, and gates in the order of their names (`hold`), tasks with SKIP LOCKED (`grant`), then counters
    in the order of tenants and lanes.
    Candidates are read only after the queue is held, so that two rounds never serve the same turn. Polls of different
    lanes take rounds of their own: the second of two in one transaction would lock tenants' rows out of order.

    A round of workers that call no provider asks for no gate. Else it begins in one of two ways. One that trusts takes
    all gates to be at rest, and looks only whether one is not when it holds the queue: then, or where it meets work
    whose calls are limited, it leases nothing, and the next round is watchful. A watchful one reads all gates, looks in
    those lanes alone that they admit something from, and locks them; when it finds all at rest, the next one trusts. A
    round that trusts admits its calls at the moment of that look: what opens a breaker later counts for the next one.

    A round asks no more polls than there is work, and those last that took nothing when they were looked at before.
    With a thousand idle workers it would else lock a thousand sessions for one task. Where one of them takes nothing,
    the next round is thorough and asks all.

    Only `Scheduler._serve` makes a round, and only `TaskStore.run_round` runs it, once.

    Args:
        queue: The queue.
        polls: The polls it serves, all of the same lanes.
        costs: Expected device seconds by lane.
        weights: Shares of tenants.
        answer_bytes: Bytes of tasks that a poll is answered with.
        limits: What the gates of providers are held to.
        first_lane: Where to begin among the lanes of providers.
        watchful: Whether gates are read, and locked.
        thorough: Whether all polls are asked, however little work there is.
    """

    def __init__(
        self,
        queue: str,
        polls: Sequence[Poll],
        costs: Mapping[str, float],
        weights: Mapping[str, float],
        answer_bytes: int,
        *,
        limits: ProviderLimits,
        first_lane: str = "",
        watchful: bool = False,
        thorough: bool = False,
    ) -> None:
        self.queue = queue
        self.polls = polls
        self.answers: dict[Poll, list[TaskRecord]] = {}
        self.refused: list[Poll] = []
        self.granted: list[TaskRecord] = []
        self.again = False
        self.held = False
        self.thorough = thorough
        # Polls whose session was looked at, and whether it takes nothing.
        self.resting: dict[Poll, bool] = {}
        self._costs = costs
        self._weights = weights
        self._answer_bytes = answer_bytes
        self._limits = limits
        self.next_lane = first_lane
        self.watchful = watchful
        self._passage: Passage | None = None
        self._trusted: Sequence[GateName] = ()
        self._cut = False

    async def run(self, store: RoundStore) -> None:
        """Run the round inside its transaction."""
        served = self.polls[0].lanes
        gated = frozenset(pair for pair in served if gate_of(pair) is not None)
        if gated and not self.watchful:
            await self._trust(store, sorted(served - gated), gated)
            return
        lanes = await self._open_lanes(store, gated)
        new = self._new()
        known = await store.register([_entry(poll) for poll in new], lanes, self._limit(self.polls))
        self._note(new, known.polls)
        admitted = self._admitted(known.contenders)
        if admitted:
            await self._serve(store, lanes, admitted)
        if self._passage is not None:
            self.watchful = self._passage.watched
            await store.write_gates(
                self._passage.after([(record.lane, trial_name(record.id, record.attempt)) for record in self.granted]),
                self._passage.refused(),
                self._passage.buckets_after([(record.lane, record.tenant) for record in self.granted]),
            )

    @property
    def gates_open_in(self) -> float | None:
        """Seconds until a gate that passed work over may admit something; None where no time tells."""
        return None if self._passage is None else self._passage.opens_in()

    @property
    def refused_by_gates(self) -> Sequence[tuple[str, bool]]:
        """Providers that work was passed over for, and whether for their breaker."""
        return [] if self._passage is None else [(name.provider, broken) for name, broken in self._passage.refused()]

    async def _trust(self, store: RoundStore, own: Sequence[str], gated: frozenset[str]) -> None:
        """Lease as if no gate stood before any lane, or find that one does."""
        new = self._new()
        known = await store.register([_entry(poll) for poll in new], own, self._limit(self.polls), self.next_lane)
        self.next_lane = known.next_lane
        self._note(new, known.polls)
        contenders = [one for one in known.contenders if one.lane in own or parts_of(one.lane)[0] in gated]
        lanes = sorted({*own, *(one.lane for one in contenders)})
        self._trusted = gates_of(lanes)
        if any(self._limits.bounds(name.provider) for name in self._trusted):
            self.watchful = self.again = True
        elif contenders:
            await self._serve(store, lanes, contenders)

    def _new(self) -> list[Poll]:
        return [poll for poll in self.polls if not poll.registered]

    async def _open_lanes(self, store: RoundStore, gated: frozenset[str]) -> list[str]:
        """Return the lanes to look in: the pairs of the polls, and of providers those lanes that a gate admits from."""
        served = self.polls[0].lanes
        if not gated:
            return sorted(served)
        view, self.next_lane = await store.gates(gated, self.next_lane)
        self._passage = Passage(view, self._limits)
        return [*sorted(served - gated), *self._passage.lanes]

    def _admitted(self, contenders: Sequence[Contender]) -> Sequence[Contender]:
        passage = self._passage
        if passage is None:
            return contenders
        return [contender for contender in contenders if passage.admits(contender.lane, contender.tenant)]

    def _note(self, new: Sequence[Poll], known: Mapping[UUID, RegisteredPoll]) -> None:
        for poll in new:
            noted = known.get(poll.session.id)
            if noted is None:
                self.refused.append(poll)
                continue
            self.resting[poll] = noted.draining
            if noted.leases:
                self.answers[poll] = list(noted.leases)

    def _confirm(self, asked: Sequence[Poll], confirmed: Mapping[PollEntry, bool]) -> None:
        """Refuse polls whose session ended, or polled elsewhere, while they were parked; keep draining ones waiting.

        A task leased to such a session would be lost: the expiry that gives its leases back is over already.
        """
        for poll in asked:
            draining = confirmed.get(_entry(poll))
            if draining is None:
                self.refused.append(poll)
                continue
            # To refuse it would end its session and the attempts it still runs: it waits until its time is over.
            self.resting[poll] = draining

    def _open(self, polls: Sequence[Poll]) -> list[Poll]:
        """Return those that may be given work."""
        refused = set(self.refused)
        return [
            poll
            for poll in polls
            if poll not in self.answers and poll not in refused and not self.resting.get(poll, False)
        ]

    def _asked(self, polls: Sequence[Poll], work: int) -> Sequence[Poll]:
        """Choose whom to serve: as many as there is work, unless the round is thorough or some take not everything."""
        if self.thorough or work >= len(polls) or any(poll.full_tenants for poll in polls):
            return polls
        return sorted(polls, key=lambda poll: poll.resting)[:work]

    async def _serve(self, store: RoundStore, lanes: Sequence[str], contenders: Sequence[Contender]) -> None:
        parked = self._open(self.polls)
        if not parked:
            return
        # Another replica may have served these tenants before the queue was held: the next round sees the others.
        wanted = self._share(contenders, parked)
        if not wanted:
            return
        work = sum(wanted.values())
        polls = self._asked(parked, work)
        ahead = LOOK_AHEAD if any(poll.warm for poll in polls) else 0
        asked = [poll for poll in polls if poll not in self.resting]
        held = await store.hold(
            [_entry(poll) for poll in asked],
            {name: n + ahead for name, n in wanted.items()},
            lanes,
            self._limit(polls),
            None if self._passage is None else self._passage.view,
            trusted=self._trusted,
        )
        if held.gates is not None:
            self._passage = Passage(held.gates, self._limits, held=True)
        self._confirm(asked, held.confirmed)
        if held.restless:
            self.watchful = self.again = True
            return
        served = self._open(polls)
        # Others may take what these do not: the next round asks them too.
        self.thorough = len(served) < len(polls) < len(parked)
        polls = served
        if not polls:
            self.again = self.thorough
            return
        contenders = self._admitted(held.contenders)
        waiting: dict[str, list[Candidate]] = {}
        for candidate in held.candidates:
            waiting.setdefault(candidate.tenant, []).append(candidate)
        counted = {contender.tenant for contender in contenders}
        empty = [tenant for tenant in wanted if tenant in counted and tenant not in waiting]
        passed_over = not self._share(contenders, polls).keys() <= wanted.keys()
        self.again = bool(empty) or passed_over or self.thorough
        spared = len(polls) < len(parked)
        most = min(work, _capacity(polls)) if spared else _capacity(polls)
        grants, owners, virtual_time = self._choose(contenders, waiting, polls, most)
        # What came meanwhile is for idle workers, before these get more than their first.
        self.again = self.again or (spared and any(waiting.values()))
        if empty:
            await store.recount(empty, list(waiting))
        if not grants:
            return
        for record in await store.grant(grants, virtual_time):
            self.answers.setdefault(owners[record.id], []).append(record)
            self.granted.append(record)
        self.held = len(self.granted) < len(grants)
        # Places that a gate did not have are others' in the next round.
        self.again = self.again or (self._cut and len(grants) < _capacity(polls))

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
        most: int,
    ) -> tuple[list[Grant], dict[UUID, Poll], float]:
        """Deal so many tasks out in the order of their tenants' virtual time, to the polls in turn."""
        clocks = {contender.tenant: contender.virtual_time for contender in contenders if contender.tenant in waiting}
        heap = [(clock, tenant) for tenant, clock in clocks.items()]
        heapq.heapify(heap)
        turns = deque((poll, poll.capacity, self._answer_bytes) for poll in polls)
        grants: list[Grant] = []
        owners: dict[UUID, Poll] = {}
        latest = 0.0
        self._drop_refused(waiting)
        while heap and turns and len(grants) < most:
            clock, tenant = heapq.heappop(heap)
            if not waiting[tenant]:
                continue
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
            if self._passage is not None and self._passage.take(task.lane, tenant):
                self._drop_refused(waiting)
            cost = task.expected_seconds or expected_cost(task.lane, self._costs)
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

    def _drop_refused(self, waiting: Mapping[str, list[Candidate]]) -> None:
        """Pass over the tasks that no gate has a place for."""
        passage = self._passage
        if passage is None:
            return
        for tenant, tasks in waiting.items():
            admitted = [task for task in tasks if passage.admits(task.lane, tenant)]
            self._cut = self._cut or len(admitted) < len(tasks)
            tasks[:] = admitted

    def _limit(self, polls: Sequence[Poll]) -> int:
        # A tenant whose counter is wrong takes a place, and so does one that no poll takes, or that has all the calls
        # under way that it may have: read a few more than needed.
        full = 0 if self._passage is None else self._passage.full_tenants()
        return _capacity(polls) + 8 + max(len(poll.full_tenants) for poll in polls) + full


def _entry(poll: Poll) -> PollEntry:
    return PollEntry(poll.session.id, poll.sequence)


def _capacity(polls: Sequence[Poll]) -> int:
    return min(MAX_ROUND, sum(poll.capacity for poll in polls))
