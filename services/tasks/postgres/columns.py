"""Columns of `tasks` in the order of `TaskRecord`, and rows as records."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from services.tasks.domain import TaskRecord

NAMES = TaskRecord._fields
SELECT = ", ".join(NAMES)
SELECT_T = ", ".join(f"t.{name}" for name in NAMES)

# When a task ends that is named `t` in an UPDATE. A lease is timed by its statement, so its end is too: the transaction
# may have begun before the task did. The clock may have been set back in between.
ENDED_AT = "greatest(statement_timestamp(), t.started_at, t.leased_at)"

values = attrgetter(*NAMES)


def array(values: Sequence[str]) -> str:
    """Return strings as the text of a PostgreSQL array: arrays in a parameter must have one length, texts need not."""
    quoted = (value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return "{" + ",".join(f'"{value}"' for value in quoted) + "}"


def record(row: Sequence[Any]) -> TaskRecord:
    """Return a row of `SELECT` as a record."""
    return TaskRecord._make(row)
