"""What follows from the parts of the mesh for the whole."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from meshkit.loops import LoopState
from services.monitoring.health.domain import (
    CRITICAL_LOOPS,
    FILE_WATCHER,
    BreakerPolicyView,
    BreakerView,
    CircuitState,
    Mode,
    PartFinding,
    PartKind,
    QueueView,
    Survey,
    WatchedPart,
    WholeState,
    is_breaker_name,
    mode,
    provider_parts,
    verdict,
    watched,
    with_watcher,
    worker_parts,
    worst,
)
from services.monitoring.supervision.domain import LoopOverview

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
POLICY = BreakerPolicyView(5, 30.0, 3, 2)


def part(name: str, *, critical: bool = False, error: str | None = None) -> PartFinding:
    return PartFinding(name, name, PartKind.SERVICE, critical, "", error)


def survey(*parts: PartFinding) -> Survey:
    return Survey(NOW, parts, [], {})


def test_all_that_works_is_healthy() -> None:
    assert verdict(survey(part("a", critical=True)), [LoopOverview("x", LoopState.RUNNING)]) == (WholeState.HEALTHY, [])


def test_what_is_not_critical_degrades() -> None:
    parts = survey(part("a", critical=True), part("b", error="away"))
    assert verdict(parts, [LoopOverview("x", LoopState.STOPPED)]) == (WholeState.DEGRADED, ["b", "x"])


def test_what_is_critical_makes_unhealthy_and_is_named_alone() -> None:
    parts = survey(part("a", critical=True, error="away"), part("b", error="away"))
    assert verdict(parts, []) == (WholeState.UNHEALTHY, ["a"])
    loops = [LoopOverview("tasks_expiry", LoopState.FAILED)]
    assert verdict(survey(), loops) == (WholeState.UNHEALTHY, ["tasks_expiry"])


def test_workers_must_be_there_where_the_queue_is_critical_or_something_waits() -> None:
    queues = [QueueView("inference", 0, 0), QueueView("fal", 3, 0), QueueView("idle", 0, 0), QueueView("busy", 9, 1)]
    found = worker_parts(queues, ["inference"], {"fal": CircuitState.OPEN}, 0.1)
    assert [(one.name, one.critical, one.error is None) for one in found] == [
        ("inference_workers", True, False),
        ("fal_workers", False, False),
        ("busy_workers", False, True),
    ]
    assert found[1].circuit is CircuitState.OPEN


def test_a_provider_with_an_open_breaker_does_not_work() -> None:
    breakers = [
        BreakerView("FAL_STANDARD", "", POLICY),
        BreakerView("FAL_STANDARD", "a", POLICY, CircuitState.OPEN),
        BreakerView("VERTEX", "", POLICY, CircuitState.HALF_OPEN),
    ]
    fal, vertex = provider_parts(breakers, 0.1)
    assert (fal.name, fal.circuit, fal.error) == ("fal_standard", CircuitState.OPEN, "its breaker is open")
    assert (vertex.circuit, vertex.error) == (CircuitState.HALF_OPEN, None)
    assert worst([]) is CircuitState.CLOSED


def test_a_part_is_unhealthy_after_three_failures_in_a_row_and_healthy_after_two_successes() -> None:
    bad, good = part("a", error="away"), part("a")
    states: list[tuple[bool, int]] = []
    one: WatchedPart = watched(good)
    assert (one.healthy, one.checked_at) == (True, None)
    for finding in (bad, bad, good, bad, bad, bad, good, bad, good, good):
        one = one.after(finding, NOW + timedelta(seconds=15 * len(states)))
        states.append((one.healthy, one.failures))
    assert states == [
        (True, 1),
        (True, 2),
        (True, 0),
        (True, 1),
        (True, 2),
        (False, 3),
        (False, 0),
        (False, 1),
        (False, 0),
        (True, 0),
    ]
    assert one.checked_at == NOW + timedelta(seconds=135)


@pytest.mark.parametrize(
    ("away", "expected"),
    [
        ("", Mode.NORMAL),
        ("c", Mode.DEGRADED),
        ("a", Mode.MINIMAL),
        ("ac", Mode.MINIMAL),
        ("ab", Mode.OFFLINE),
        ("abc", Mode.OFFLINE),
    ],
)
def test_the_mode_follows_from_what_is_critical(away: str, expected: Mode) -> None:
    parts = [watched(part("a", critical=True)), watched(part("b", critical=True)), watched(part("c"))]
    assert mode([replace(one, healthy=one.name not in away) for one in parts]) is expected


def test_breakers_have_names_that_can_be_asked_for_and_tell_keys_apart() -> None:
    keys = ["", "flux", "fal-ai/flux", "fal-ai_flux", "x" * 100, "x" * 99 + "y"]
    names = [BreakerView("FAL_STANDARD", key, POLICY).name for key in keys]
    assert names[:2] == ["FAL_STANDARD", "FAL_STANDARD-flux"]
    assert names[2].startswith("FAL_STANDARD-fal-ai_flux-")
    assert len(set(names)) == len(names)
    assert all(is_breaker_name(name) for name in names)
    assert not any(is_breaker_name(name) for name in ("", "a/b", "a" * 65, "a b", "a\n"))


def test_a_mesh_with_cameras_is_unhealthy_without_its_watcher() -> None:
    critical = {*CRITICAL_LOOPS, FILE_WATCHER}
    running = with_watcher([LoopOverview(FILE_WATCHER, LoopState.RUNNING)])
    assert verdict(survey(), running, critical) == (WholeState.HEALTHY, [])
    never = with_watcher([LoopOverview("z", LoopState.RUNNING)])
    assert [one.name for one in never] == [FILE_WATCHER, "z"]
    assert verdict(survey(), never, critical) == (WholeState.UNHEALTHY, [FILE_WATCHER])
    assert verdict(survey(), never) == (WholeState.DEGRADED, [FILE_WATCHER])
