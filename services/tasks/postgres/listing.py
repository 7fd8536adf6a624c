"""Where lists look for tasks.

Tasks that ended are found by an index for each filter, which a task pays for once. Those that have not ended are found
by one for all filters, `tasks_unended`: it is read in the order of lists, as far as a page needs. Without a filter, an
index has all tasks of a tenant; those of all tenants are found in these two parts, too.
"""

from __future__ import annotations

from psycopg import sql

from services.tasks.domain import TERMINAL, TaskStatus

FILTERS = ("status", "task_type", "provider_type", "origin_instance", "origin_zone")

_PART = "(SELECT * FROM tasks WHERE {{where}} AND {which} {{order}})"
_ENDED = sql.SQL(_PART.format(which="completed_at IS NOT NULL"))
_ENDED_OR_HIDDEN = sql.SQL(_PART.format(which="(completed_at IS NOT NULL OR is_deleted)"))
_UNENDED = sql.SQL(_PART.format(which="completed_at IS NULL AND NOT is_deleted"))


def source(
    where: sql.Composable,
    order: sql.Composable | None,
    *,
    is_parted: bool,
    status: str | None,
    is_rare: bool = False,
    with_hidden: bool = False,
) -> sql.Composable:
    """Return what follows FROM for the tasks that fulfil conditions.

    Args:
        where: The conditions; `kind = 'TASK'` is among them where they are looked for in parts, and `NOT is_deleted`
            unless they are looked for with those that are hidden.
        order: What will follow ORDER BY, where an index gives it: both parts come in this order, which merges them
            without sorting all. None where rows are counted or no index gives the order: a part that sorts
            reads all that match.
        is_parted: Whether to look in parts: where there is a condition on a column of `FILTERS`, or none on the tenant.
        status: The status that the conditions name; None where they name none.
        is_rare: Whether few tasks fulfil the conditions: these are searched and sorted. The planner, which estimates
            how many there are, may walk all tasks in their order instead.
        with_hidden: Whether tasks that were hidden are among them.
    """
    if not is_parted:
        return sql.SQL("tasks WHERE {}").format(where)
    ordered = sql.SQL("") if order is None else sql.SQL("ORDER BY {}").format(order)
    ordered = sql.SQL("OFFSET 0") if is_rare else ordered  # OFFSET 0 is planned by itself
    if with_hidden:
        parts = [_ENDED_OR_HIDDEN, _UNENDED]
    elif status is None:
        parts = [_ENDED, _UNENDED]
    else:
        parts = [_ENDED if TaskStatus(status) in TERMINAL else _UNENDED]
    union = sql.SQL(" UNION ALL ").join(part.format(where=where, order=ordered) for part in parts)
    return sql.SQL("({}) tasks").format(union)
