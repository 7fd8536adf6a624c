"""Writing what was decided: of the rows that changed the columns that changed, each change guarded and counted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from psycopg import sql

from meshkit import outbox
from meshkit.db import Connection
from services.workflows import events
from services.workflows.domain import StepRecord, WorkflowRecord
from services.workflows.engine import Decision
from services.workflows.postgres import columns
from services.workflows.store import Whole

_CREATE_WORKFLOW = (
    f"INSERT INTO workflows ({columns.WORKFLOW}) VALUES ({', '.join(['%s'] * len(columns.WORKFLOW_NAMES))})"  # noqa: S608 -- fixed names
)
_CREATE_STEP = f"INSERT INTO steps ({columns.STEP}) VALUES ({', '.join(['%s'] * len(columns.STEP_NAMES))})"  # noqa: S608 -- fixed names
_COPY_STEPS = f"COPY steps ({columns.STEP}) FROM STDIN"


async def create(conn: Connection, whole: Whole) -> None:
    """Writes a new workflow and the news of it; not within a pipeline."""
    await conn.execute(_CREATE_WORKFLOW, columns.workflow_values(whole.workflow))
    async with conn.cursor() as cursor, cursor.copy(_COPY_STEPS) as copy:
        for step in whole.steps:
            await copy.write_row(columns.step_values(step))
    await outbox.insert(conn, [events.changed(whole.workflow)])


async def apply(conn: Connection, before: Whole, decision: Decision) -> None:
    """Writes a decision and the news of it.

    Args:
        conn: A connection in a transaction that holds the workflow's lock.
        before: The rows that were decided upon.
        decision: What was decided.
    """
    if decision.workflow is before.workflow:
        return
    known = len(before.steps)
    changed = [(old, new) for old, new in zip(before.steps, decision.steps[:known], strict=True) if new is not old]
    items = decision.steps[known:]
    # One round trip in all. The counts are known at its end, before the commit.
    async with conn.pipeline():
        saved = await _save(conn, before.workflow, decision.workflow)
        groups = [(len(group), await _save_steps(conn, names, group)) for names, group in _grouped(changed).items()]
        if items:
            async with conn.cursor() as cursor:
                await cursor.executemany(_CREATE_STEP, [columns.step_values(item) for item in items])
        if _is_news(before.workflow, decision.workflow):
            await outbox.insert(conn, [events.changed(decision.workflow)])
    assert saved.rowcount == 1, "the workflow's lock is held"
    for count, cursor in groups:
        assert cursor.rowcount == count, "the workflow's lock is held"


async def save_workflow(conn: Connection, before: WorkflowRecord, after: WorkflowRecord) -> None:
    """Writes the members of a workflow that changed."""
    async with conn.pipeline():
        saved = await _save(conn, before, after)
    assert saved.rowcount == 1, "the workflow's lock is held"


async def _save(conn: Connection, before: WorkflowRecord, after: WorkflowRecord) -> Any:
    names = _differing(before, after, columns.WORKFLOW_NAMES)
    values = [getattr(after, name) for name in names]
    return await conn.execute(_update_workflow(names), [*values, before.id, before.version])


async def _save_steps(conn: Connection, names: tuple[str, ...], group: Sequence[tuple[StepRecord, StepRecord]]) -> Any:
    if len(group) == 1:  # most are: arrays of one cost more than the rest of the statement
        old, new = group[0]
        values = [getattr(new, name) for name in names]
        return await conn.execute(_update_step(names), [*values, old.id, old.attempt, old.state, old.state])
    arrays = [[getattr(new, name) for _, new in group] for name in names]
    known = [[old.id for old, _ in group], [old.state.value for old, _ in group], [old.attempt for old, _ in group]]
    return await conn.execute(_update_steps(names), [*arrays, *known])


def _grouped(
    changed: Sequence[tuple[StepRecord, StepRecord]],
) -> dict[tuple[str, ...], list[tuple[StepRecord, StepRecord]]]:
    """Changed steps by the columns that changed: a fan's are written by one statement."""
    groups: dict[tuple[str, ...], list[tuple[StepRecord, StepRecord]]] = {}
    for old, new in changed:
        groups.setdefault(_differing(old, new, tuple(columns.STEP_TYPES)), []).append((old, new))
    return groups


def _differing(before: object, after: object, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if getattr(before, name) != getattr(after, name))


@lru_cache(maxsize=256)
def _update_workflow(names: tuple[str, ...]) -> bytes:
    sets = sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in names)
    return sql.SQL("UPDATE workflows SET {} WHERE id = %s AND version = %s").format(sets).as_bytes()


# That its task was made is noted without the workflow's lock, and changes nothing for who decides.
_KNOWN = "(s.state = {0} OR ({0}, s.state) = ('DISPATCHING', 'RUNNING'))"


@lru_cache(maxsize=256)
def _update_step(names: tuple[str, ...]) -> bytes:
    sets = sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in names)
    known = sql.SQL(_KNOWN).format(sql.SQL("%s"))
    query = sql.SQL("UPDATE steps AS s SET {} WHERE s.id = %s AND s.attempt = %s AND {}")
    return query.format(sets, known).as_bytes()


@lru_cache(maxsize=256)
def _update_steps(names: tuple[str, ...]) -> bytes:
    sets = sql.SQL(", ").join(sql.SQL("{0} = n.{0}").format(sql.Identifier(name)) for name in names)
    arrays = sql.SQL(", ").join(sql.SQL("%s::{}[]").format(sql.Identifier(columns.STEP_TYPES[name])) for name in names)
    fields = sql.SQL(", ").join(map(sql.Identifier, names))
    known = sql.SQL(_KNOWN).format(sql.SQL("n.known_state"))
    query = sql.SQL(
        "UPDATE steps AS s SET {} FROM unnest({}, %s::uuid[], %s::text[], %s::integer[]) "
        "AS n ({}, known_id, known_state, known_attempt) WHERE s.id = n.known_id AND s.attempt = n.known_attempt AND {}"
    )
    return query.format(sets, arrays, fields, known).as_bytes()


def _is_news(before: WorkflowRecord, after: WorkflowRecord) -> bool:
    return before.status is not after.status or before.completed_steps != after.completed_steps
