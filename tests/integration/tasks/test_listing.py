"""Lists by filter hold every task that matches, once and newest first, whatever became of it."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from atelier.tasks.v1 import enums_pb2, tasks_service_pb2
from atelier.tasks.v1 import monitoring_service_pb2 as pb
from psycopg import sql

from services.tasks.monitoring.domain import TaskQuery
from services.tasks.postgres.monitoring import PostgresMonitoring
from tests.integration.tasks.conftest import Mesh, noop
from tests.integration.tasks.test_monitoring import listed, monitor, run

STATUSES = ("PENDING", "EXECUTING", "COMPLETED", "FAILED", "CANCELLED")
FILTERS: list[tuple[str, str]] = [
    *(("status", status) for status in STATUSES),
    ("task_type", "NOOP"),
    ("task_type", "EDITING"),
    ("provider_type", "LOCAL"),
    ("origin_instance", "tests"),
    ("origin_zone", "z1"),
]


async def fill(mesh: Mesh, tenant: str) -> None:
    """Leave two tasks of each kind: waiting, delayed, leased, completed, failed, cancelled, and hidden ones of each."""
    worker = await mesh.worker()
    for hidden in (False, True):
        made = [await mesh.create(noop(origin_zone=f"z{n % 2}"), tenant) for n in range(10)]
        leases = {lease.job_id: lease for lease in await run(mesh, worker, 10)}
        ids = [task.id for task in made]
        for ident in ids[0:2]:
            await worker.complete(leases[ident])
        for ident in ids[2:4]:
            await worker.fail(leases[ident], retryable=False)
        for ident in ids[4:6]:
            await worker.fail(leases[ident])  # it waits for its next attempt
        for ident in ids[6:8]:
            await mesh.tasks(tenant).CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=ident))
        ids += [(await mesh.create(noop(origin_zone=f"z{n}"), tenant)).id for n in range(2)]
        if hidden:
            await mesh.execute("UPDATE tasks SET is_deleted = true WHERE id = ANY(%s)", [UUID(one) for one in ids])


async def truth(mesh: Mesh, column: str, value: str, tenants: list[str]) -> list[str]:
    rows = await mesh.rows(
        f"SELECT id FROM tasks WHERE {column} = %s AND tenant = ANY(%s) AND NOT is_deleted"
        " ORDER BY created_at DESC, id DESC",
        value,
        tenants,
    )
    return [str(ident) for (ident,) in rows]


def member(column: str, value: str) -> Any:
    prefix = {"status": "TASK_STATUS_", "task_type": "TASK_TYPE_", "provider_type": "PROVIDER_TYPE_"}.get(column)
    return value if prefix is None else getattr(enums_pb2, prefix + value)


@pytest.mark.parametrize("analyzed", [False, True])
async def test_a_list_by_a_filter_holds_tasks_in_every_state_once(mesh: Mesh, analyzed: bool) -> None:
    for tenant in ("acme", "zeta"):
        await fill(mesh, tenant)
    if analyzed:
        await mesh.execute("ANALYZE tasks")
    support = monitor(mesh, scopes=("read", "support"))
    for column, value in FILTERS:
        asked = {column: member(column, value)}
        expected = await truth(mesh, column, value, ["acme"])
        assert (len(expected) > 0) == (value != "EDITING"), value
        page = await listed(monitor(mesh), **asked)
        assert ([one.id for one in page.items], page.total) == (expected, len(expected)), value
        rows = await monitor(mesh).ListTaskRows(pb.ListTaskRowsRequest(**asked))
        assert [one.id for one in rows.items] == expected, value
        of_all = await truth(mesh, column, value, ["acme", "zeta"])
        assert [one.id for one in (await listed(support, **asked, page_size=100)).items] == of_all, value
        by_start = await listed(monitor(mesh), **asked, sort_by="started_at", sort_order="asc")
        assert sorted(one.id for one in by_start.items) == sorted(expected), value
        if column != "provider_type":
            plain = await mesh.tasks("acme").ListTasks(tasks_service_pb2.ListTasksRequest(**asked))
            assert [one.id for one in plain.tasks] == expected, value


@pytest.mark.parametrize("analyzed", [False, True])
async def test_a_list_of_all_tenants_holds_every_task_once(mesh: Mesh, analyzed: bool) -> None:
    for tenant in ("acme", "zeta"):
        await fill(mesh, tenant)
    if analyzed:
        await mesh.execute("ANALYZE tasks")
    every = "SELECT id::text FROM tasks WHERE {} ORDER BY created_at DESC, id DESC"
    shown = [ident for (ident,) in await mesh.rows(every.format("NOT is_deleted"))]
    with_hidden = [ident for (ident,) in await mesh.rows(every.format("true"))]
    unended = [ident for (ident,) in await mesh.rows(every.format("status = 'PENDING'"))]
    assert (len(shown), len(with_hidden), len(unended)) == (24, 48, 12)

    page = await listed(monitor(mesh, scopes=("read", "support")), page_size=100)
    assert ([one.id for one in page.items], page.total) == (shown, len(shown))
    rows = await monitor(mesh, scopes=("read", "support")).ListTaskRows(pb.ListTaskRowsRequest())
    assert [one.id for one in rows.items] == shown
    tasks = mesh.tasks("acme", scopes=("read", "support"))
    asks: list[tuple[dict[str, Any], list[str]]] = [
        ({}, shown),
        ({"include_deleted": True}, with_hidden),
        ({"include_deleted": True, "status": enums_pb2.TASK_STATUS_PENDING}, unended),
    ]
    for asked, expected in asks:
        request = tasks_service_pb2.ListTasksRequest(limit=100, **asked)
        assert [one.id for one in (await tasks.ListTasks(request)).tasks] == expected, asked


async def test_only_the_order_of_an_index_is_asked_of_the_parts_of_a_list(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    execute = psycopg.AsyncConnection.execute

    async def noted(conn: Any, query: Any, *rest: Any, **more: Any) -> Any:
        asked.append(query.as_string(None) if isinstance(query, sql.Composable) else str(query))
        return await execute(conn, query, *rest, **more)

    monkeypatch.setattr(psycopg.AsyncConnection, "execute", noted)

    async def orders(sort_by: str) -> list[int]:
        query = TaskQuery(tenant="acme", status="COMPLETED", created_after=datetime(2026, 1, 1, tzinfo=UTC))
        asked.clear()
        await PostgresMonitoring(mesh.running.database).list_tasks(replace(query, sort_by=sort_by))
        return [one.count("ORDER BY") for one in asked if "FROM (" in one]

    assert await orders("created_at") == [0, 2], "what counts sorts nothing"
    assert await orders("duration_ms") == [0, 1], "a part that sorts reads and spills all that match"
