"""What KEDA's triggers are answered."""

import pytest

from services.monitoring.scaler.answers import (
    QueueState,
    ScaledUnit,
    TriggerError,
    active,
    target,
    trigger_of,
    value,
    whole,
)


def state(**members: float) -> QueueState:
    values = {"waiting": 0, "running": 0, "delayed": 0, "slots_reported": 0.0} | members
    return QueueState(**values, drain_seconds=60, utilization=0.8)  # type: ignore[arg-type] # numbers by name


def test_the_members_of_keda_itself_are_passed_over() -> None:
    trigger = trigger_of({"queue": "inference", "slots": "4", "scalerAddress": "monitoring:9106", "enableTLS": "true"})
    assert (trigger.queue, trigger.slots, trigger.unit) == ("inference", 4, ScaledUnit.SECONDS)
    assert trigger.metric == "inference-seconds"


@pytest.mark.parametrize(
    ("metadata", "path"),
    [
        ({}, "metadata.queue"),
        ({"queue": "q", "slots": "0"}, "metadata.slots"),
        ({"queue": "q", "slots": "many"}, "metadata.slots"),
        ({"queue": "q", "unit": "pods"}, "metadata.unit"),
    ],
)
def test_metadata_that_do_not_hold_are_named(metadata: dict[str, str], path: str) -> None:
    with pytest.raises(TriggerError, match=path):
        trigger_of(metadata)


@pytest.mark.parametrize(("slots", "reported", "replicas"), [(4, 8.0, 2), (4, 8.1, 3), (1, 0.05, 1), (3, 999.0, 333)])
def test_value_by_target_is_the_number_of_replicas(slots: int, reported: float, replicas: int) -> None:
    trigger = trigger_of({"queue": "q", "slots": str(slots)})
    found = state(slots_reported=reported)
    assert whole(value(trigger, found) / target(trigger, found)) == replicas


def test_a_job_is_started_for_each_that_waits() -> None:
    trigger = trigger_of({"queue": "training", "unit": "waiting"})
    assert (value(trigger, state(waiting=3, running=2)), target(trigger, state())) == (3, 1)
    assert active(trigger, state(waiting=1))
    assert not active(trigger, state(running=1))


@pytest.mark.parametrize("name", ["waiting", "running", "delayed", "slots_reported"])
def test_a_queue_is_active_while_anything_keeps_it(name: str) -> None:
    trigger = trigger_of({"queue": "q"})
    assert active(trigger, state(**{name: 1}))
    assert not active(trigger, state())
