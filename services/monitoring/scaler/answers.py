"""What a trigger asks for, and what it is answered. Pure."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass

MAX_SLOTS = 100_000


class TriggerError(ValueError):
    """The metadata of a trigger do not hold; the text says which."""


class ScaledUnit(enum.StrEnum):
    """What replicas are counted for."""

    # A Deployment: what runs counts, because its worker has to stay.
    SECONDS = "seconds"
    # A ScaledJob with the strategy `accurate`: one job is started for each that waits, and those that run are KEDA's.
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Trigger:
    """What a ScaledObject asks for.

    Attributes:
        queue: The queue.
        slots: Slots of one replica for it.
        unit: What replicas are counted for.
    """

    queue: str
    slots: int
    unit: ScaledUnit

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return f"{self.queue}-{self.unit.value}"


@dataclass(frozen=True, slots=True)
class QueueState:
    """What the scheduler tells of a queue.

    Attributes:
        waiting: Jobs that wait.
        running: Jobs that run.
        delayed: Jobs that wait for a retry.
        slots_reported: Slots that are to be provided.
        drain_seconds: Seconds of work that a slot is to do.
        utilization: Share of them in which it is to be busy.
    """

    waiting: int
    running: int
    delayed: int
    slots_reported: float
    drain_seconds: float
    utilization: float

    @property
    def seconds_per_slot(self) -> float:
        """Seconds of work of the queue for one slot."""
        return self.drain_seconds * self.utilization


def trigger_of(metadata: Mapping[str, str]) -> Trigger:
    """Read the metadata of a trigger; those that are KEDA's own are passed over.

    Raises:
        TriggerError: `queue` is missing, or a member does not hold.
    """
    queue = metadata.get("queue", "").strip()
    if not queue:
        raise TriggerError("metadata.queue: required")
    text = metadata.get("slots", "1").strip()
    if not text.isdecimal() or not 1 <= int(text) <= MAX_SLOTS:
        raise TriggerError(f"metadata.slots: an integer from 1 to {MAX_SLOTS}")
    try:
        unit = ScaledUnit(metadata.get("unit", ScaledUnit.SECONDS.value))
    except ValueError:
        raise TriggerError(f"metadata.unit: one of {', '.join(one.value for one in ScaledUnit)}") from None
    return Trigger(queue, int(text), unit)


def target(trigger: Trigger, state: QueueState) -> float:
    """Return how much of the metric one replica does."""
    return 1.0 if trigger.unit is ScaledUnit.WAITING else trigger.slots * state.seconds_per_slot


def value(trigger: Trigger, state: QueueState) -> float:
    """Return the value of the metric."""
    if trigger.unit is ScaledUnit.WAITING:
        return float(state.waiting)
    return state.slots_reported * state.seconds_per_slot


def active(trigger: Trigger, state: QueueState) -> bool:
    """Whether replicas are needed: anything waits, runs or waits for a retry, or a worker must not go."""
    if trigger.unit is ScaledUnit.WAITING:
        return state.waiting > 0
    return state.slots_reported > 0 or state.waiting + state.running + state.delayed > 0


def whole(number: float) -> int:
    """Return a number for readers of integers: a little work is work."""
    # A sum of fractions that is whole but for rounding stays it.
    return math.ceil(number - 1e-6)
