"""Who is served next: start-time fair queueing between tenants (Goyal, Vin, Cheng 1996), priority within one.

Every tenant of a queue has a virtual time: the cost of what it was given, divided by its weight. The tenant with the
smallest is next. Being given work is charged in advance by what such work is expected to cost, and corrected once the
device seconds are known. A tenant that comes back after it had nothing to do starts at the queue's own virtual time, so
that idling saves nothing up; and cancelling gives nothing back that was charged for an attempt.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from services.tasks.domain import parts_of

# What an attempt costs at least, in device seconds: leasing itself takes a worker's time, and free work would let one
# tenant's flood of empty tasks be always first.
MIN_COST = 0.05


class Contender(NamedTuple):
    """A tenant with waiting work in one lane of a queue.

    Attributes:
        virtual_time: The tenant's in this queue, the same in all of its lanes.
        pending: Tasks that wait in this lane.
    """

    tenant: str
    lane: str
    virtual_time: float
    pending: int


class Candidate(NamedTuple):
    """A waiting task that may be leased.

    Attributes:
        bytes: What its lease takes in an answer, about.
        expected_seconds: What it is expected to take, where it says so itself; 0 where its lane tells.
    """

    id: UUID
    tenant: str
    lane: str
    priority: int
    created_at: float
    charged: float
    warm_keys: Sequence[str]
    waited_seconds: float
    bytes: int = 0
    expected_seconds: float = 0.0


def weight_of(tenant: str, weights: Mapping[str, float]) -> float:
    """Share of a tenant relative to others; 1 where nothing is said."""
    return max(1e-3, weights.get(tenant, 1.0))


def expected_cost(lane: str, costs: Mapping[str, float]) -> float:
    """Device seconds that a task of a lane is expected to take: those of its pair."""
    cost = costs.get(lane)
    return costs.get(parts_of(lane)[0], 1.0) if cost is None else cost


def charge_at_lease(expected_cost: float, already_charged: float, weight: float) -> float:
    """Virtual time that a lease adds to its tenant; nothing for a task that was charged before."""
    return 0.0 if already_charged > 0 else max(MIN_COST, expected_cost) / weight


def correction(actual_cost: float, charged: float, weight: float) -> float:
    """Virtual time that the end of a task adds, or takes back, once its cost is known.

    Args:
        actual_cost: Device seconds of the attempt.
        charged: What its lease was charged, in device seconds, before weighting.
        weight: The tenant's.
    """
    return (max(MIN_COST, actual_cost) - charged) / weight if charged > 0 else 0.0


def share(
    contenders: Sequence[Contender], leases: int, costs: Mapping[str, float], weights: Mapping[str, float]
) -> dict[str, int]:
    """How many tasks each tenant is given in one round, as if they were given one after the other.

    Args:
        contenders: Tenants with waiting work, by lane.
        leases: Tasks to give at most.
        costs: Expected device seconds of a task, by pair.
        weights: Shares of tenants.
    """
    pending: dict[str, int] = {}
    cost: dict[str, float] = {}
    clock: dict[str, float] = {}
    for contender in contenders:
        pending[contender.tenant] = pending.get(contender.tenant, 0) + contender.pending
        clock[contender.tenant] = contender.virtual_time
        # The dearest lane decides: guessing low would give one round too much, guessing high evens out in the next.
        expected = max(MIN_COST, expected_cost(contender.lane, costs))
        cost[contender.tenant] = max(cost.get(contender.tenant, 0.0), expected)
    heap = [(virtual_time, tenant) for tenant, virtual_time in clock.items()]
    heapq.heapify(heap)
    given: dict[str, int] = {}
    while heap and leases > 0:
        virtual_time, tenant = heapq.heappop(heap)
        given[tenant] = given.get(tenant, 0) + 1
        leases -= 1
        if given[tenant] < pending[tenant]:
            heapq.heappush(heap, (virtual_time + cost[tenant] / weight_of(tenant, weights), tenant))
    return given


def prefer_warm(
    waiting: Sequence[Candidate], warm: frozenset[str], *, look_ahead: int = 16, max_wait_seconds: float = 10.0
) -> int:
    """Which of one tenant's tasks a worker is given: the first, or one near it that it holds the adapters for.

    Priority is never passed over, and neither is a task that has waited long.

    Args:
        waiting: The tenant's tasks in their order.
        warm: Adapters that the worker holds.
        look_ahead: Tasks to consider at most.
        max_wait_seconds: A first task that has waited so long is given at once.

    Returns:
        Index of the task in `waiting`.
    """
    head = waiting[0]
    if not warm or head.waited_seconds > max_wait_seconds or (head.warm_keys and warm.issuperset(head.warm_keys)):
        return 0
    for index, candidate in enumerate(waiting[:look_ahead]):
        if candidate.priority != head.priority:
            break
        if candidate.warm_keys and warm.issuperset(candidate.warm_keys):
            return index
    return 0
