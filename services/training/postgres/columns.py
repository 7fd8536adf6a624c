"""Columns of `trainings` in the order of `TrainingRecord`, and rows as records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

from services.training.domain import TrainingRecord, TrainingStatus

NAMES = tuple(one.name for one in fields(TrainingRecord))
SELECT = ", ".join(NAMES)
# What a change leaves alone, or the database sets.
_FIXED = frozenset({"id", "tenant", "created_at", "updated_at", "version", "request", "seed", "traceparent"})
MUTABLE = tuple(name for name in NAMES if name not in _FIXED)

values = attrgetter(*NAMES)
mutable_values = attrgetter(*MUTABLE)
_STATUS = NAMES.index("status")


def record(row: Sequence[Any]) -> TrainingRecord:
    """Return a row of `SELECT` as a record."""
    found = list(row)
    found[_STATUS] = TrainingStatus(found[_STATUS])
    return TrainingRecord(*found)
