"""Where lists look for tasks.

Tasks that ended are found by an index for each filter, which a task pays for once. Those that have not ended are found
by one for all filters, `tasks_unended`: it is read in the order of lists, as far as a page needs.
"""

from __future__ import annotations

from psycopg import sql

from services.tasks.domain import TERMINAL, TaskStatus

FILTERS = ("status", "task_type", "provider_type", "origin_instance", "origin_zone")

_ENDED = sql.SQL("(SELECT * FROM tasks WHERE {where} AND completed_at IS NOT NULL {order})")
_UNENDED = sql.SQL("(SELECT * FROM tasks WHERE {where} AND completed_at IS NULL {order})")


def source(
    where: sql.Composable, order: sql.Composable | None, *, is_filtered: bool, status: str | None, is_rare: bool = False
) -> sql.Composable:
    """Return what follows FROM for the tasks that fulfil conditions.

    Args:
        where: The conditions; `kind = 'TASK' AND NOT is_deleted` is among them where it is filtered.
        order: What will follow ORDER BY, where an index gives it: both parts come in this order, which merges them
            without sorting all. None where rows are counted or no index gives the order: a part that sorts
            reads all that match.
        is_filtered: Whether there is a condition on a column of `FILTERS`.
        status: The status that the conditions name; None where they name none.
        is_rare: Whether few tasks fulfil the conditions: these are searched and sorted. The planner, which estimates
            how many there are, may walk all tasks in their order instead.
    """
    if not is_filtered:
        return sql.SQL("tasks WHERE {}").format(where)
    ordered = sql.SQL("") if order is None else sql.SQL("ORDER BY {}").format(order)
    ordered = sql.SQL("OFFSET 0") if is_rare else ordered  # OFFSET 0 is planned by itself
    parts = [_ENDED, _UNENDED] if status is None else [_ENDED if TaskStatus(status) in TERMINAL else _UNENDED]
    union = sql.SQL(" UNION ALL ").join(part.format(where=where, order=ordered) for part in parts)
    return sql.SQL("({}) tasks").format(union)
