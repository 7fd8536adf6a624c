"""What a round may lease to providers, by the gates of their lanes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import TypeAdapter, ValidationError

from meshkit.catalog import PROVIDERS
from services.tasks.providers.config import GateSettingsByName, TenantCalls, limits_of
from services.tasks.providers.domain import (
    Breaker,
    BreakerPolicy,
    BreakerState,
    BucketPolicy,
    Gate,
    GateLimits,
    GateName,
    ProviderLimits,
    TokenBucket,
)
from services.tasks.providers.gates import GATED, GateView, Passage, gate_of, gates_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FAL = GateName("FAL_STANDARD")
APP = GateName("FAL_STANDARD", "a/b")
LANE = "GENERATION/FAL_STANDARD/a/b"
OTHER = "EDITING/FAL_STANDARD/c/d"


def passage(
    *gates: Gate,
    limits: dict[GateName, GateLimits] | None = None,
    tenants: dict[str, dict[str, int]] | None = None,
    running: dict[tuple[str, str], int] | None = None,
    held: bool = False,
) -> Passage:
    view = GateView(NOW, [LANE, OTHER], {gate.name: gate for gate in gates}, running or {})
    return Passage(view, ProviderLimits(limits, tenants), held=held)


def opened(seconds_ago: float) -> Breaker:
    return Breaker(BreakerState.OPEN, failure_count=5, opened_at=NOW - timedelta(seconds=seconds_ago))


def test_only_calls_leave_the_house_through_gates() -> None:
    assert gate_of("GENERATION/LOCAL") is None
    assert gate_of("TRAINING/LOCAL") is None
    assert gate_of("REFINE/SARTIQ_ULTIMATE_REFINER") is None
    assert gate_of("REFINE/FREEPIK_MAGNIFIC") == GateName("FREEPIK_MAGNIFIC")
    assert gate_of(LANE) == APP
    assert gates_of([LANE, "GENERATION/LOCAL"]) == [FAL, APP]
    assert {name for name, spec in PROVIDERS.items() if spec.queue == "inference"}.isdisjoint(GATED)


def test_open_breaker_of_an_application_leaves_others_alone() -> None:
    found = passage(Gate(APP, opened(10)))
    assert found.lanes == [OTHER]
    assert found.refused() == [(APP, True)]
    assert found.opens_in() == pytest.approx(20)


def test_provider_as_a_whole_bounds_all_its_applications() -> None:
    limits = {FAL: GateLimits(concurrency=3)}
    found = passage(limits=limits, running={(LANE, "acme"): 1})
    assert [found.take(OTHER, "acme"), found.take(LANE, "acme")] == [False, True]
    assert not found.admits(LANE, "other")
    assert not found.admits(OTHER, "other")
    assert found.refused() == [(GateName("FAL_STANDARD", "a/b"), False), (GateName("FAL_STANDARD", "c/d"), False)]
    assert found.opens_in() is None


def test_tenant_at_its_bound_is_passed_over() -> None:
    found = passage(tenants={"*": {"FAL_STANDARD": 1}, "vip": {"FAL_STANDARD": 2}}, running={(LANE, "acme"): 1})
    assert [found.admits(OTHER, tenant) for tenant in ("acme", "vip", "other")] == [False, True, True]
    assert found.full_tenants() == 1
    assert found.refused() == []


def test_leases_take_tokens_of_both_gates_and_places_among_trials() -> None:
    policy = BucketPolicy(rate=1.0, burst=5)
    limits = {FAL: GateLimits(bucket=policy, breaker=BreakerPolicy(recovery_timeout=1))}
    found = passage(Gate(FAL), Gate(APP, opened(2)), limits=limits, held=True)
    assert found.lanes == [LANE, OTHER]
    for _ in range(3):
        found.take(LANE, "acme")
    assert not found.admits(LANE)
    assert found.admits(OTHER)
    changed = {gate.name: gate for gate in found.after([(LANE, f"t{number}/1") for number in range(3)])}
    assert changed[APP].breaker.trials == {"t0/1", "t1/1", "t2/1"}
    assert changed[APP].total_calls == 3
    assert changed[FAL].bucket == TokenBucket(2.0, NOW)
    assert changed[FAL].total_calls == 0


def test_gate_that_admits_all_that_comes_has_no_one_waiting() -> None:
    found = passage(Gate(APP, waiting_since=NOW), held=True)
    assert found.after([]) == [Gate(APP)]
    assert passage(Gate(APP, waiting_since=NOW)).after([]) == []


def test_settings_are_read_and_refused() -> None:
    gates, tenants = TypeAdapter(GateSettingsByName), TypeAdapter(TenantCalls)
    limits = limits_of(
        gates.validate_json(
            '{"FAL_STANDARD": {"concurrency": 2, "rate": 1.5}, "FAL_STANDARD/a/b": {"burst": 4, "rate": 1}}'
        ),
        tenants.validate_json('{"*": {"VERTEX": 3}}'),
    )
    assert limits.of(FAL) == GateLimits(2, BucketPolicy(1.5, 2))
    assert limits.of(APP) == GateLimits(None, BucketPolicy(1.0, 4))
    assert limits.of_tenant("acme", "VERTEX") == 3
    for wrong in (
        '{"LOCAL": {}}',
        '{"FAL": {}}',
        '{"VERTEX": {"concurency": 1}}',
        '{"VERTEX": {"concurrency": 0}}',
        '{"VERTEX": {"burst": 3}}',
        '{"VERTEX": {"success_threshold": 4}}',
    ):
        with pytest.raises(ValidationError):
            gates.validate_json(wrong)
    rated = limits_of({}, tenants.validate_json('{"*": {"VERTEX": {"rate": 2.5}}, "acme": {"VERTEX": 3}}'))
    assert rated.rate_of_tenant("other", "VERTEX") == BucketPolicy(2.5, 3)
    assert (rated.of_tenant("other", "VERTEX"), rated.rate_of_tenant("acme", "VERTEX")) == (None, None)
    for wrong in (
        '{"*": {"LOCAL": 1}}',
        '{"": {"VERTEX": 1}}',
        '{"*": {"VERTEX": 0}}',
        '{"*": {"VERTEX": {"rate": 0}}}',
        '{"*": {"VERTEX": {"burst": 2}}}',
    ):
        with pytest.raises(ValidationError):
            tenants.validate_json(wrong)
