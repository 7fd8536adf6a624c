"""Breakers and buckets of providers, by examples and against a model of a few lines."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.tasks.providers.domain import (
    MAX_REST_SECONDS,
    Breaker,
    BreakerPolicy,
    BreakerState,
    BucketPolicy,
    GateLimits,
    GateName,
    ProviderLimits,
    TokenBucket,
)
from services.tasks.service_requests import ServiceRequestEffect

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = BreakerPolicy()


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def failed(times: int) -> Breaker:
    breaker = Breaker()
    for number in range(times):
        breaker = breaker.after(f"call-{number}", ServiceRequestEffect.FAILURE, NOW, POLICY)
    return breaker


def half_open(policy: BreakerPolicy = POLICY) -> Breaker:
    opened = Breaker().after("a", ServiceRequestEffect.FATAL, NOW, policy)
    return opened.at(later(policy.recovery_timeout), policy)


def test_consecutive_failures_at_the_threshold_open() -> None:
    assert failed(4).state is BreakerState.CLOSED
    assert failed(5).state is BreakerState.OPEN
    assert failed(5).places(POLICY) == 0


def test_success_between_failures_keeps_closed() -> None:
    breaker = (
        failed(4)
        .after("b", ServiceRequestEffect.SUCCESS, NOW, POLICY)
        .after("c", ServiceRequestEffect.FAILURE, NOW, POLICY)
    )
    assert (breaker.state, breaker.failure_count) == (BreakerState.CLOSED, 1)


def test_fatal_opens_at_once() -> None:
    assert Breaker().after("a", ServiceRequestEffect.FATAL, NOW, POLICY).state is BreakerState.OPEN


def test_ignored_changes_nothing() -> None:
    for breaker in (failed(4), failed(5), half_open().admit("t")):
        assert breaker.after("t", ServiceRequestEffect.IGNORED, NOW, POLICY) is breaker


def test_open_one_is_half_open_after_its_timeout() -> None:
    opened = failed(5)
    assert opened.at(later(29.9), POLICY).state is BreakerState.OPEN
    assert opened.at(later(30), POLICY).state is BreakerState.HALF_OPEN


def test_half_open_admits_so_many_and_closes_after_successes() -> None:
    breaker = half_open()
    assert breaker.places(POLICY) == 3
    for number in range(3):
        breaker = breaker.admit(str(number))
    assert breaker.places(POLICY) == 0
    breaker = breaker.after("0", ServiceRequestEffect.SUCCESS, NOW, POLICY)
    assert (breaker.state, breaker.places(POLICY)) == (BreakerState.HALF_OPEN, 0)
    breaker = breaker.after("1", ServiceRequestEffect.SUCCESS, NOW, POLICY)
    assert (breaker.state, breaker.places(POLICY)) == (BreakerState.CLOSED, None)


@pytest.mark.parametrize("effect", [ServiceRequestEffect.FAILURE, ServiceRequestEffect.FATAL])
def test_failed_trial_opens_again_for_a_whole_timeout(effect: ServiceRequestEffect) -> None:
    breaker = half_open().admit("t").after("t", effect, later(40), POLICY)
    assert (breaker.state, breaker.opens_at(POLICY), breaker.trials) == (BreakerState.OPEN, later(70), frozenset())


def test_lost_trial_gives_its_place_back() -> None:
    breaker = half_open().admit("a").admit("b").admit("c")
    assert breaker.without(["b", "unknown"]).places(POLICY) == 1


def test_calls_of_before_say_nothing_about_trials() -> None:
    breaker = half_open().admit("t")
    for effect in (ServiceRequestEffect.SUCCESS, ServiceRequestEffect.FAILURE, ServiceRequestEffect.FATAL):
        assert breaker.after("of before", effect, NOW, POLICY) is breaker


def test_trial_counts_once() -> None:
    breaker = half_open().admit("t").after("t", ServiceRequestEffect.SUCCESS, NOW, POLICY)
    assert breaker.after("t", ServiceRequestEffect.SUCCESS, NOW, POLICY) is breaker
    assert breaker.after("t", ServiceRequestEffect.FAILURE, NOW, POLICY) is breaker


class Calls(RuleBasedStateMachine):
    """A breaker under any order of calls, ends, losses and pauses, beside a model that keeps lists instead."""

    @initialize(
        failures=st.integers(1, 4), trials=st.integers(1, 4), successes=st.integers(1, 4), timeout=st.integers(1, 20)
    )
    def begin(self, failures: int, trials: int, successes: int, timeout: int) -> None:
        self.policy = BreakerPolicy(failures, float(timeout), trials, min(successes, trials))
        self.breaker = Breaker()
        self.now = NOW
        self.names = 0
        self.running: list[str] = []
        # The model: when it opened, the trials of this period with what each told, the failures in a row.
        self.opened: datetime | None = None
        self.period: dict[str, ServiceRequestEffect | None] | None = None
        self.row = 0

    def _settle(self) -> None:
        self.breaker = self.breaker.at(self.now, self.policy)
        if self.opened is not None and self.now >= self.opened + timedelta(seconds=self.policy.recovery_timeout):
            self.opened, self.period = None, {}

    def _open(self) -> None:
        self.opened, self.period = self.now, None

    @rule(seconds=st.integers(0, 25))
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        self._settle()

    @rule(asked=st.integers(1, 6))
    def lease(self, asked: int) -> None:
        places = self.breaker.places(self.policy)
        given = asked if places is None else min(asked, places)
        for _ in range(given):
            self.names += 1
            self.breaker = self.breaker.admit(str(self.names))
            self.running.append(str(self.names))
            if self.period is not None:
                self.period[str(self.names)] = None
        if self.opened is not None:
            assert given == 0
        if self.period is not None and asked >= self.policy.half_open_max_calls:
            assert len(self.period) == self.policy.half_open_max_calls, "all places are taken, and no more"

    @precondition(lambda self: self.running)
    @rule(data=st.data(), effect=st.sampled_from(ServiceRequestEffect))
    def end(self, data: st.DataObject, effect: ServiceRequestEffect) -> None:
        call = data.draw(st.sampled_from(self.running))
        self.running.remove(call)
        self.breaker = self.breaker.after(call, effect, self.now, self.policy)
        if self.period is not None and call in self.period:
            if effect is ServiceRequestEffect.IGNORED:
                self._lose(call)
            elif effect is ServiceRequestEffect.SUCCESS:
                self.period[call] = effect
                if list(self.period.values()).count(ServiceRequestEffect.SUCCESS) >= self.policy.success_threshold:
                    self.period, self.row = None, 0
            else:
                self._open()
        elif self.period is None and self.opened is None:
            if effect is ServiceRequestEffect.SUCCESS:
                self.row = 0
            elif effect is not ServiceRequestEffect.IGNORED:
                self.row += 1
                if effect is ServiceRequestEffect.FATAL or self.row >= self.policy.failure_threshold:
                    self._open()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def lose_worker(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.running))
        self.running.remove(call)
        self._lose(call)

    def _lose(self, call: str) -> None:
        self.breaker = self.breaker.without([call])
        if self.period is not None:
            self.period.pop(call, None)

    @rule()
    def reset(self) -> None:
        self.breaker = self.breaker.reset()
        self.opened, self.period, self.row = None, None, 0

    @invariant()
    def agrees(self) -> None:
        state = BreakerState.CLOSED
        if self.opened is not None:
            state = BreakerState.OPEN
        elif self.period is not None:
            state = BreakerState.HALF_OPEN
            assert len(self.period) <= self.policy.half_open_max_calls
            assert self.breaker.trials == {call for call, told in self.period.items() if told is None}
        assert self.breaker.state is state


TestCalls = Calls.TestCase


def test_bucket_gives_its_burst_then_its_rate() -> None:
    policy = BucketPolicy(rate=2.0, burst=3)
    bucket = TokenBucket()
    assert bucket.places(NOW, policy) == 3
    bucket = bucket.take(3, NOW, policy)
    assert bucket.places(NOW, policy) == 0
    assert bucket.refuses_until(NOW, policy) == later(0.5)
    assert bucket.places(later(0.5), policy) == 1
    assert bucket.places(later(60), policy) == 3


@given(
    rate=st.floats(0.1, 50),
    burst=st.integers(1, 20),
    asks=st.lists(st.tuples(st.floats(0, 5), st.integers(1, 10)), max_size=30),
)
def test_bucket_never_gives_more_than_its_burst_and_its_rate(
    rate: float, burst: int, asks: list[tuple[float, int]]
) -> None:
    policy, bucket, now, given_in_all = BucketPolicy(rate, burst), TokenBucket(), NOW, 0
    for seconds, asked in asks:
        now += timedelta(seconds=seconds)
        places = bucket.places(now, policy)
        assert places is not None
        bucket = bucket.take(min(asked, places), now, policy)
        given_in_all += min(asked, places)
        assert given_in_all <= burst + rate * (now - NOW).total_seconds() + 1e-3
        if asked > places:
            assert (bucket.places(bucket.refuses_until(now, policy) + timedelta(microseconds=1), policy) or 0) >= 1


def test_bucket_rests_as_long_as_the_provider_asks_but_not_for_ever() -> None:
    bucket = TokenBucket().rest(10, NOW).rest(5, NOW)
    assert bucket.places(later(9), None) == 0
    assert bucket.refuses_until(NOW, None) == later(10)
    assert bucket.places(later(10), None) is None
    assert TokenBucket().rest(1e9, NOW).blocked_until == later(MAX_REST_SECONDS)


def test_key_without_limits_has_the_breaker_of_its_provider() -> None:
    breaker = BreakerPolicy(failure_threshold=2)
    limits = ProviderLimits(
        {GateName("FAL_STANDARD"): GateLimits(concurrency=4, breaker=breaker)},
        {"*": {"VERTEX": 2}, "acme": {"VERTEX": 7}},
    )
    assert limits.of(GateName("FAL_STANDARD", "a/b")) == GateLimits(breaker=breaker)
    assert limits.of(GateName("VERTEX")) == GateLimits()
    assert [limits.counts(name) for name in ("FAL_STANDARD", "VERTEX", "AI_CORE")] == [True, True, False]
    assert [limits.of_tenant(name, "VERTEX") for name in ("acme", "other")] == [7, 2]


def test_clock_that_steps_back_fills_no_bucket() -> None:
    policy = BucketPolicy(rate=1.0, burst=5)
    bucket = TokenBucket().take(5, NOW, policy)
    assert bucket.places(later(-10), policy) == 0
    assert replace(bucket, tokens=None).places(NOW, policy) == 5
