"""Writing decisions: of the rows that changed, the columns that changed.

Before: the caller's transaction holds the locks of the workflows' rows, taken in the order of their ids, and the
decisions were made from rows read under these locks (or from a snapshot that `snapshot_cache` found valid under them).
`create` alone needs no lock: nobody knows the workflow yet.

Each UPDATE is guarded by what the decision was made from: a workflow by its version, a step by its attempt and state.
Rows are counted before the commit; a missing one is a fault of this service, because the locks are held. One change is
allowed to come in between without the workflow's lock: `accept` makes a DISPATCHING step RUNNING.

After: every changed workflow has a higher version and a later `updated_at`; the events of what callers see are in the
outbox, in the same transaction. Columns that a decision did not change are not written, so notes that others made in
them stay.

Lock order: workflows before their steps. Steps are locked in any order, so whoever writes steps without the workflow's
lock must skip locked rows, as `accept` and the `due_*` queries do.

Rows that change in the same columns share a statement, those of a fan and those of many chains. One statement for each
row would cost the transaction of 32 chains 30 % more of processor, that of 8 fans of 20 steps 65 %.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from psycopg import sql

from meshkit import outbox
from meshkit.db import Connection
from meshkit.pipeline import PendingRows, Pipeline
from services.workflows import events
from services.workflows.domain import StepRecord, WorkflowRecord
from services.workflows.engine import Decision
from services.workflows.postgres import columns
from services.workflows.store import WorkflowSnapshot

_Record = TypeVar("_Record", WorkflowRecord, StepRecord)

_CREATE_WORKFLOW = (
    f"INSERT INTO workflows ({columns.WORKFLOW}) VALUES ({', '.join(['%s'] * len(columns.WORKFLOW_NAMES))})"  # noqa: S608 -- fixed names
)
_CREATE_STEP = f"INSERT INTO steps ({columns.STEP}) VALUES ({', '.join(['%s'] * len(columns.STEP_NAMES))})"  # noqa: S608 -- fixed names


async def create(conn: Connection, whole: WorkflowSnapshot) -> None:
    """Write a new workflow and its event."""
    await conn.execute(_CREATE_WORKFLOW, columns.workflow_values(whole.workflow))
    for step in whole.steps:
        await conn.execute(_CREATE_STEP, columns.step_values(step))
    await outbox.insert(conn, [events.changed(whole.workflow)])


async def apply(conn: Pipeline, decided: Sequence[tuple[WorkflowSnapshot, Decision]]) -> None:
    """Write decisions and their events; see the module for what must hold.

    Args:
        conn: A connection in a transaction that holds the locks of the workflows.
        decided: The rows that were decided upon, and what was decided; those that did not move are passed over.
    """
    moved = [(before, decision) for before, decision in decided if decision.workflow is not before.workflow]
    if not moved:
        return
    flows = [(before.workflow, decision.workflow) for before, decision in moved]
    steps: list[tuple[StepRecord, StepRecord]] = []
    items: list[StepRecord] = []
    for before, decision in moved:
        known = len(before.steps)
        steps += [(old, new) for old, new in zip(before.steps, decision.steps[:known], strict=True) if new is not old]
        items += decision.steps[known:]
    saved = await _save_workflows(conn, flows)
    saved += [
        (len(group), await _save_steps(conn, names, group))
        for names, group in _grouped(steps, _changed_of_step).items()
    ]
    for item in items:
        await conn.execute(_CREATE_STEP, columns.step_values(item))
    await outbox.insert(conn, [events.changed(new) for old, new in flows if _has_event(old, new)])
    # All of it goes in one round trip; the counts are known at its end, before the commit.
    for count, rows in saved:
        assert await rows.count() == count, "the workflows' locks are held"


async def save_workflow(conn: Pipeline, before: WorkflowRecord, after: WorkflowRecord) -> None:
    """Write the members of a workflow that changed."""
    saved = await _save(conn, before, after)
    assert await saved.count() == 1, "the workflow's lock is held"


async def _save_workflows(
    conn: Pipeline, changed: Sequence[tuple[WorkflowRecord, WorkflowRecord]]
) -> list[tuple[int, PendingRows]]:
    """Send the updates of workflows: for each statement the rows that it must change, and its answer."""
    saved: list[tuple[int, PendingRows]] = []
    for names, group in _grouped(changed, _changed_of_workflow).items():
        if len(group) == 1 or not columns.WORKFLOW_TYPES.keys() >= set(names):
            saved += [(1, await _save(conn, old, new)) for old, new in group]
            continue
        known = [[old.id for old, _ in group], [old.version for old, _ in group]]
        query = _update_workflows(names)
        saved.append((len(group), await conn.execute(query, [*_lists(names, [new for _, new in group]), *known])))
    return saved


async def _save(conn: Pipeline, before: WorkflowRecord, after: WorkflowRecord) -> PendingRows:
    names = _changed_of_workflow(before, after)
    values = [getattr(after, name) for name in names]
    return await conn.execute(_update_workflow(names), [*values, before.id, before.version])


async def _save_steps(
    conn: Pipeline, names: tuple[str, ...], group: Sequence[tuple[StepRecord, StepRecord]]
) -> PendingRows:
    if len(group) == 1:  # lists of one cost more than the rest of the statement
        old, new = group[0]
        values = [getattr(new, name) for name in names]
        return await conn.execute(_update_step(names), [*values, old.id, old.attempt, old.state, old.state])
    known = [[old.id for old, _ in group], [old.state.value for old, _ in group], [old.attempt for old, _ in group]]
    return await conn.execute(_update_steps(names), [*_lists(names, [new for _, new in group]), *known])


def _lists(names: Sequence[str], records: Sequence[WorkflowRecord] | Sequence[StepRecord]) -> list[list[Any]]:
    """Values of columns, a list for each; enumerations as text, which goes in binary."""
    found = [[getattr(record, name) for record in records] for name in names]
    return [[str(one) for one in values] if isinstance(values[0], enum.Enum) else values for values in found]


def _grouped(
    changed: Sequence[tuple[_Record, _Record]], names_of: Callable[[_Record, _Record], tuple[str, ...]]
) -> dict[tuple[str, ...], list[tuple[_Record, _Record]]]:
    """Group changes by the columns that changed: one statement writes a group."""
    groups: dict[tuple[str, ...], list[tuple[_Record, _Record]]] = {}
    for old, new in changed:
        groups.setdefault(names_of(old, new), []).append((old, new))
    return groups


def _changed_of_workflow(before: WorkflowRecord, after: WorkflowRecord) -> tuple[str, ...]:
    return _differing(before, after, columns.WORKFLOW_NAMES)


def _changed_of_step(before: StepRecord, after: StepRecord) -> tuple[str, ...]:
    names = _differing(before, after, columns.STEP_TYPES)
    # `accept` may have made the last attempt RUNNING since the row was read: write the state again.
    return ("state", *names) if after.attempt != before.attempt and "state" not in names else names


def _differing(before: object, after: object, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if getattr(before, name) != getattr(after, name))


@lru_cache(maxsize=256)
def _update_workflow(names: tuple[str, ...]) -> bytes:
    sets = sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in names)
    return sql.SQL("UPDATE workflows SET {} WHERE id = %s AND version = %s").format(sets).as_bytes()


@lru_cache(maxsize=256)
def _update_workflows(names: tuple[str, ...]) -> bytes:
    query = sql.SQL(
        "UPDATE workflows AS w SET {} FROM unnest({}, %b::uuid[], %b::bigint[]) AS n ({}, known_id, known_version) "
        "WHERE w.id = n.known_id AND w.version = n.known_version"
    )
    return query.format(*_listed(names, columns.WORKFLOW_TYPES)).as_bytes()


# `accept` makes a step RUNNING without the workflow's lock; the decision is the same for both states.
_KNOWN = "(s.state = {0} OR ({0}, s.state) = ('DISPATCHING', 'RUNNING'))"


@lru_cache(maxsize=256)
def _update_step(names: tuple[str, ...]) -> bytes:
    sets = sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in names)
    known = sql.SQL(_KNOWN).format(sql.SQL("%s"))
    query = sql.SQL("UPDATE steps AS s SET {} WHERE s.id = %s AND s.attempt = %s AND {}")
    return query.format(sets, known).as_bytes()


@lru_cache(maxsize=256)
def _update_steps(names: tuple[str, ...]) -> bytes:
    known = sql.SQL(_KNOWN).format(sql.SQL("n.known_state"))
    query = sql.SQL(
        "UPDATE steps AS s SET {} FROM unnest({}, %b::uuid[], %b::text[], %b::integer[]) "
        "AS n ({}, known_id, known_state, known_attempt) WHERE s.id = n.known_id AND s.attempt = n.known_attempt AND {}"
    )
    return query.format(*_listed(names, columns.STEP_TYPES), known).as_bytes()


def _listed(names: tuple[str, ...], types: Mapping[str, str]) -> tuple[sql.Composable, sql.Composable, sql.Composable]:
    """Return the parts of a statement that sets columns from lists: the assignments, the lists, and their names."""
    return (
        sql.SQL(", ").join(sql.SQL("{0} = n.{0}").format(sql.Identifier(name)) for name in names),
        sql.SQL(", ").join(sql.SQL("%b::{}[]").format(sql.Identifier(types[name])) for name in names),
        sql.SQL(", ").join(map(sql.Identifier, names)),
    )


def _has_event(before: WorkflowRecord, after: WorkflowRecord) -> bool:
    return before.status is not after.status or before.completed_steps != after.completed_steps
