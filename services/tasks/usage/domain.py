"""What attempts, calls and storage use. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import NamedTuple

from meshkit.errors import invalid

DIMENSIONS = ("day", "tenant", "task_type", "provider_type", "model", "device")
CPU = "cpu"
_DEFAULT_DAYS = 30
_MOST_DAYS = 366


class DeviceUse(NamedTuple):
    """What an attempt has used of a device.

    Attributes:
        seconds: How long the device worked.
        device: Which (`cpu`, `cuda:0`); empty where none did.
        model: Model that it worked with; empty where there was none.
    """

    seconds: float = 0.0
    device: str = ""
    model: str = ""


NOTHING_USED = DeviceUse()


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """What to sum up; None where a member does not matter.

    Attributes:
        first: First day in UTC.
        last: Last day in UTC, which counts as well.
        by: What a row is of, of `DIMENSIONS`.
    """

    first: date
    last: date
    by: tuple[str, ...]
    tenant: str | None = None
    task_type: str | None = None
    provider_type: str | None = None
    model: str | None = None


@dataclass(slots=True)
class UsageFigures:
    """What was used, summed up.

    Attributes:
        key: What the row is of, by dimension.
        attempts: Attempts that have ended.
        failed_attempts: Those of them that failed or were lost.
        run_seconds: From taking them to their ends.
        device_seconds: What devices worked.
        gpu_seconds: What GPUs worked of it.
        cpu_seconds: What processors worked of it.
        calls: Requests to providers that have ended.
        failed_calls: Those of them without a result.
        call_seconds: From sending them to their ends.
        costs: What they have cost, by currency.
        objects: Objects in storage.
        bytes: Their bytes.
    """

    key: Mapping[str, str]
    attempts: int = 0
    failed_attempts: int = 0
    run_seconds: float = 0.0
    device_seconds: float = 0.0
    gpu_seconds: float = 0.0
    cpu_seconds: float = 0.0
    calls: int = 0
    failed_calls: int = 0
    call_seconds: float = 0.0
    costs: dict[str, float] = field(default_factory=dict)
    objects: int = 0
    bytes: int = 0


class StoredFigures(NamedTuple):
    """What a tenant stores of one task type and model.

    Attributes:
        task_type: The type; of what is no task's, its first folder.
        model: Model that made it; empty where none is known.
    """

    task_type: str
    model: str
    objects: int
    bytes: int


def days_between(first: str | None, last: str | None, today: date) -> tuple[date, date]:
    """Return the first and the last day that are asked for.

    Raises:
        MeshError: `INVALID` for what is no day, for a range that ends before it begins, and for one that is too long.
    """
    end = _day(last, "last_day") if last is not None else today
    begin = _day(first, "first_day") if first is not None else end - timedelta(days=_DEFAULT_DAYS - 1)
    if begin > end:
        raise invalid("first_day", "is after last_day", "range")
    if (end - begin).days >= _MOST_DAYS:
        raise invalid("first_day", f"is more than {_MOST_DAYS} days before last_day", "range")
    return begin, end


def total_of(rows: Sequence[UsageFigures], stored: Mapping[str, int]) -> UsageFigures:
    """Sum up rows; what is stored is not the sum over days."""
    total = UsageFigures({}, objects=stored["objects"], bytes=stored["bytes"])
    for row in rows:
        for name in (
            "attempts",
            "failed_attempts",
            "run_seconds",
            "device_seconds",
            "gpu_seconds",
            "cpu_seconds",
            "calls",
            "failed_calls",
            "call_seconds",
        ):
            setattr(total, name, getattr(total, name) + getattr(row, name))
        for currency, cost in row.costs.items():
            total.costs[currency] = total.costs.get(currency, 0.0) + cost
    return total


def _day(text: str, member: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise invalid(member, "is no day", "date") from None
