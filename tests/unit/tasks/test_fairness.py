from collections import Counter
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.tasks.scheduling.fairness import (
    MIN_COST,
    Candidate,
    Contender,
    charge_at_lease,
    correction,
    prefer_warm,
    share,
    weight_of,
)

LANE = "NOOP/LOCAL"
TENANTS = st.sampled_from([f"t{n}" for n in range(6)])


def contenders(clocks: dict[str, float], pending: int = 10_000) -> list[Contender]:
    return [Contender(tenant, LANE, clock, pending) for tenant, clock in clocks.items()]


def serve(clocks: dict[str, float], rounds: int, leases: int, weights: dict[str, float]) -> Counter[str]:
    """Rounds as the scheduler runs them: shares, then charges."""
    given_out: Counter[str] = Counter()
    for _ in range(rounds):
        for tenant, count in share(contenders(clocks), leases, {LANE: 1.0}, weights).items():
            given_out[tenant] += count
            clocks[tenant] += count * charge_at_lease(1.0, 0.0, weight_of(tenant, weights))
    return given_out


@given(leases=st.integers(1, 40))
def test_weights_of_one_to_three_give_one_to_three(leases: int) -> None:
    given_out = serve({"a": 0.0, "b": 0.0}, 200, leases, {"b": 3.0})
    total = given_out.total()
    assert abs(given_out["b"] / total - 0.75) < 0.05


@given(
    clocks=st.dictionaries(TENANTS, st.floats(0, 100), min_size=1),
    leases=st.integers(0, 64),
    pending=st.integers(1, 20),
)
def test_share_gives_all_it_can_and_no_more_than_there_is(clocks: dict[str, float], leases: int, pending: int) -> None:
    given_out = share(contenders(clocks, pending), leases, {LANE: 1.0}, {})
    assert sum(given_out.values()) == min(leases, pending * len(clocks))
    assert all(count <= pending for count in given_out.values())


@given(clocks=st.dictionaries(TENANTS, st.floats(0, 50), min_size=2), leases=st.integers(1, 64))
def test_nobody_is_served_while_another_waits_far_behind(clocks: dict[str, float], leases: int) -> None:
    given_out = share(contenders(clocks), leases, {LANE: 1.0}, {})
    after = {tenant: clock + given_out.get(tenant, 0) for tenant, clock in clocks.items()}
    served = [tenant for tenant in clocks if given_out.get(tenant)]
    # Whoever was served stood no later than anyone else does now, but for one task.
    assert all(after[tenant] - 1 <= min(after.values()) + 1e-9 for tenant in served)


def test_flood_does_not_hold_a_newcomer_up() -> None:
    clocks = {"flooder": 500.0, "modest": 500.0}
    assert share(contenders(clocks), 2, {LANE: 1.0}, {}) == {"flooder": 1, "modest": 1}


def test_lanes_of_one_tenant_share_its_clock() -> None:
    both = [Contender("a", "X/LOCAL", 0.0, 5), Contender("a", "Y/LOCAL", 0.0, 5), Contender("b", "X/LOCAL", 0.0, 50)]
    given_out = share(both, 10, {"X/LOCAL": 1.0, "Y/LOCAL": 1.0}, {})
    assert given_out == {"a": 5, "b": 5}


def test_requeue_is_charged_once() -> None:
    assert charge_at_lease(2.0, 0.0, 1.0) == 2.0
    assert charge_at_lease(2.0, 2.0, 1.0) == 0.0


@given(expected=st.floats(0.1, 100), actual=st.floats(0, 1000), weight=st.floats(0.1, 10))
def test_charge_and_correction_add_up_to_the_cost(expected: float, actual: float, weight: float) -> None:
    total = charge_at_lease(expected, 0.0, weight) + correction(actual, expected, weight)
    assert total == pytest.approx(max(MIN_COST, actual) / weight)


def test_weight_is_one_unless_said_and_never_nothing() -> None:
    assert weight_of("a", {}) == 1.0
    assert weight_of("a", {"a": 0.0}) > 0


def candidate(*keys: str, priority: int = 0, waited: float = 0.0) -> Candidate:
    return Candidate(uuid4(), "t", LANE, priority, 0.0, 0.0, keys, waited)


def test_warm_task_near_the_head_is_preferred() -> None:
    waiting = [candidate("b"), candidate(), candidate("a")]
    assert prefer_warm(waiting, frozenset({"a"})) == 2


def test_cold_worker_and_warm_head_take_the_head() -> None:
    assert prefer_warm([candidate("b"), candidate("a")], frozenset()) == 0
    assert prefer_warm([candidate("a"), candidate("a")], frozenset({"a"})) == 0


def test_priority_is_never_passed_over() -> None:
    assert prefer_warm([candidate("b", priority=1), candidate("a")], frozenset({"a"})) == 0


def test_head_that_waited_long_is_not_passed_over() -> None:
    assert prefer_warm([candidate("b", waited=11), candidate("a")], frozenset({"a"})) == 0


def test_look_ahead_is_bounded() -> None:
    waiting = [candidate("b") for _ in range(16)] + [candidate("a")]
    assert prefer_warm(waiting, frozenset({"a"})) == 0


def test_part_of_the_adapters_is_not_warm() -> None:
    assert prefer_warm([candidate(), candidate("a", "b")], frozenset({"a"})) == 0
