"""Lists by filter hold every workflow that matches, once and newest first, whatever became of it."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from atelier.workflows.v1 import monitoring_service_pb2 as pb
from atelier.workflows.v1 import workflow_pb2, workflows_service_pb2
from atelier.workflows.v1.monitoring_service_pb2_grpc import WorkflowMonitoringServiceStub

from meshkit import counting
from meshkit.db import Database
from meshkit.errors import ErrorKind, MeshError
from services.workflows.domain import WorkflowStatus
from services.workflows.postgres.store import PostgresWorkflowStore
from services.workflows.store import Page, WorkflowFilter
from tests.integration.workflows.conftest import Mesh, create, noop

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
# Of each tenant two of each state, instance and zone, made at the same moment, one of them hidden.
_FILL = (
    """
INSERT INTO workflows (id, tenant, name, description, status, on_failure, config, suppress_subtask_events,
    origin_instance, origin_zone, total_steps, completed_steps, final_step_id, errors, started_at, completed_at,
    created_at, updated_at, is_deleted, version, traceparent)
SELECT gen_random_uuid(), tenant, 'Look ' || n, 'of ' || tenant, status, 'cancel', '', true, instance, zone, 4,
    CASE WHEN status = 'COMPLETED' THEN 4 ELSE 1 END, 'last',
    CASE WHEN status = 'FAILED' THEN ARRAY['no'] ELSE ARRAY[]::text[] END,
    CASE WHEN status <> 'PENDING' THEN %(noon)s END,
    CASE WHEN status IN ('COMPLETED', 'FAILED', 'CANCELLED') THEN %(noon)s + interval '2 seconds' END,
    %(noon)s + n %% 7 * interval '1 minute', %(noon)s, hidden, 1, ''
FROM (
    SELECT row_number() OVER () AS n, * FROM unnest(ARRAY['acme', 'zeta']) tenant
    CROSS JOIN unnest(%(states)s::text[]) status CROSS JOIN unnest(ARRAY['shop', 'lab']) instance
    CROSS JOIN unnest(ARRAY[NULL, 'eu']) zone CROSS JOIN unnest(ARRAY[false, true]) hidden
) w
""".replace("{{", "{")
    .replace("}}", "}")
    .replace("n % 7", "n %% 7")
)
FILTERS: list[dict[str, Any]] = [
    {},
    *({"status": status} for status in WorkflowStatus),
    {"origin_instance": "lab"},
    {"origin_instance": "none"},
    {"origin_zone": "eu"},
    {"origin_zone": ""},
    {"created_after": NOON + timedelta(minutes=3)},
    {"created_before": NOON + timedelta(minutes=3)},
    {"search": "ook 1"},
    {"search": "LOOK"},
    {"search": "%"},
    {"search": ""},
    {"status": WorkflowStatus.FAILED, "origin_zone": "eu", "origin_instance": "shop"},
]


@pytest.fixture
async def db(mesh_dsn: str) -> AsyncIterator[Database]:
    db = Database(mesh_dsn, schema="workflows")
    await db.open()
    async with db.transaction() as conn:
        await conn.execute(_FILL, {"states": [status.value for status in WorkflowStatus], "noon": NOON})
    yield db
    await db.close()


async def truth(db: Database, which: WorkflowFilter, order: str = "created_at DESC, id DESC") -> list[UUID]:
    conditions, values = ["true"], []
    for name in ("tenant", "status", "origin_instance", "origin_zone"):
        if (value := getattr(which, name)) is not None:
            conditions.append(f"{name} = %s")
            values.append(value)
    if which.created_after is not None:
        conditions.append("created_at >= %s")
        values.append(which.created_after)
    if which.created_before is not None:
        conditions.append("created_at < %s")
        values.append(which.created_before)
    if which.search is not None:
        conditions.append("strpos(lower(name), lower(%s)) > 0")
        values.append(which.search)
    if not which.include_deleted:
        conditions.append("NOT is_deleted")
    async with db.connection() as conn:
        cursor = await conn.execute(
            f"SELECT id FROM workflows WHERE {' AND '.join(conditions)} ORDER BY {order}", values
        )
        return [row[0] for row in await cursor.fetchall()]


@pytest.mark.parametrize("analyzed", [False, True])
async def test_a_list_by_a_filter_holds_workflows_in_every_state_once(db: Database, analyzed: bool) -> None:
    store = PostgresWorkflowStore(db)
    if analyzed:
        async with db.transaction() as conn:
            await conn.execute("ANALYZE workflows")
    for tenant in ("acme", None):
        for members in FILTERS:
            which = WorkflowFilter(tenant=tenant, **members)
            expected = await truth(db, which)
            assert bool(expected) == (
                members not in ({"origin_instance": "none"}, {"origin_zone": ""}, {"search": "%"})
            )
            listed, skip = [], 0
            while True:
                items, total, exact = await store.list_items(which, Page(skip, 7))
                assert (total, exact) == (len(expected), True), which
                if not items:
                    break
                listed += [one.id for one in items]
                skip += 7
            assert listed == expected, which
            [(oldest, *_), _, _] = (
                await store.list_items(which, Page(0, 50, descending=False))
                if expected
                else (
                    [None],
                    0,
                    True,
                )
            )
            assert oldest is None or oldest.id == expected[-1], which
    for members in ({}, {"status": WorkflowStatus.CANCELLED}, {"origin_instance": "lab"}):
        for tenant in ("acme", None):
            which = WorkflowFilter(tenant=tenant, include_deleted=True, **members)
            expected = await truth(db, which)
            assert len(expected) == 2 * len(await truth(db, WorkflowFilter(tenant=tenant, **members)))
            found = [(await store.list_workflows(which, Page(skip, 30))) for skip in range(0, len(expected), 30)]
            assert [one.workflow.id for page, _ in found for one in page] == expected
            assert {total for _, total in found} == {len(expected)}


@pytest.mark.parametrize(
    ("sort_by", "order"),
    [
        ("started_at", "started_at {} NULLS LAST, id {}"),
        ("completed_at", "completed_at {} NULLS LAST, id {}"),
        ("status", "status {}, id {}"),
        ("name", "name {}, id {}"),
    ],
)
async def test_a_list_is_sorted_with_what_has_no_value_last(db: Database, sort_by: str, order: str) -> None:
    which = WorkflowFilter(tenant="zeta", origin_zone="eu")
    for descending, way in ((True, "DESC"), (False, "ASC")):
        page = Page(0, 100, sort_by, descending=descending)
        items, _, _ = await PostgresWorkflowStore(db).list_items(which, page)
        assert [one.id for one in items] == await truth(db, which, order.format(way, way))


async def test_a_search_finds_the_beginning_of_an_id_too(db: Database) -> None:
    store = PostgresWorkflowStore(db)
    [one, *_], _, _ = await store.list_items(WorkflowFilter(tenant="acme"), Page(0, 1))
    for search in (str(one.id)[:13], one.id.hex[:13].upper()):
        items, total, _ = await store.list_items(WorkflowFilter(tenant="acme", search=search), Page(0, 5))
        assert ([found.id for found in items], total) == ([one.id], 1)
        assert await store.list_items(WorkflowFilter(tenant="zeta", search=search), Page(0, 5)) == ([], 0, True)


async def test_pages_have_bounds_and_tenants_walls(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    database = mesh.running.database
    async with database.transaction() as conn:
        await conn.execute(_FILL, {"states": [status.value for status in WorkflowStatus], "noon": NOON})
    own, support = mesh.monitoring(), mesh.channel(scopes=("read", "support")).stub(WorkflowMonitoringServiceStub)
    request = pb.ListMonitoredWorkflowsRequest

    for bad in ({"page": 0}, {"page_size": 0}, {"page_size": 101}, {"sort_by": "config"}, {"sort_order": "up"}):
        with pytest.raises(MeshError) as refused:
            await own.ListMonitoredWorkflows(request(**bad))
        assert refused.value.kind is ErrorKind.INVALID, bad
    with pytest.raises(MeshError) as refused:
        await own.ListMonitoredWorkflows(request(origin_tenant_id="zeta"))
    assert refused.value.kind is ErrorKind.FORBIDDEN

    answer = await own.ListMonitoredWorkflows(request(page_size=10, page=2, origin_tenant_id="acme"))
    assert (answer.total, answer.pages, len(answer.items)) == (24, 3, 10)
    assert {one.origin_tenant_id for one in answer.items} == {"acme"}
    beyond = await own.ListMonitoredWorkflows(request(page_size=10, page=4))
    assert (beyond.total, beyond.pages, list(beyond.items)) == (24, 3, [])
    nothing = await mesh.monitoring("other").ListMonitoredWorkflows(request())
    assert (nothing.total, nothing.pages, list(nothing.items)) == (0, 0, [])
    assert (await support.ListMonitoredWorkflows(request())).total == 48
    assert (await support.ListMonitoredWorkflows(request(origin_tenant_id="zeta", origin_zone="eu"))).total == 12
    of_support = await support.GetWorkflowStats(pb.GetWorkflowStatsRequest(origin_zone="eu"))
    assert dict(of_support.by_status) == dict.fromkeys(WorkflowStatus, 4)
    assert (await own.GetWorkflowStats(pb.GetWorkflowStatsRequest(origin_zone="eu"))).total_workflows == 12
    failed = await own.ListMonitoredWorkflows(request(status=workflow_pb2.WORKFLOW_STATUS_FAILED, page_size=1))
    [item] = failed.items
    assert (item.has_error, item.progress, item.duration_ms, item.description) == (True, 25.0, 2000.0, "of acme")

    told: list[Any] = []
    monkeypatch.setattr(counting, "EXACT_TOTAL", 5)
    estimated = await own.ListMonitoredWorkflows(request(search="look"), trailing=told.extend)
    assert estimated.total >= 6
    assert dict(told)["total-is-estimate"] == "true"
    told.clear()
    assert (await own.ListMonitoredWorkflows(request(), trailing=told.extend)).total == 24
    assert "total-is-estimate" not in dict(told)


async def test_counts_follow_workflows_that_the_service_moves(mesh: Mesh) -> None:
    stub, monitor = mesh.workflows(), mesh.monitoring()
    mesh.worker.failing.add("bad")
    mesh.worker.held.add("slow")
    good = (await stub.CreateWorkflow(create(noop("a"), noop("b", "a")))).workflow.id
    bad = (await stub.CreateWorkflow(create(noop("a", config={"payload": "bad"})))).workflow.id
    slow = (await stub.CreateWorkflow(create(noop("a", config={"payload": "slow"})))).workflow.id
    waiting = (await stub.CreateWorkflow(create(noop("a"), start=False))).workflow.id
    await mesh.ended(good)
    await mesh.ended(bad)

    async def counted() -> dict[str, int]:
        answers = []
        for _ in range(2):  # the same before and after the notes are added up
            answers.append(await monitor.GetWorkflowStats(pb.GetWorkflowStatsRequest()))
            await PostgresWorkflowStore(mesh.running.database).fold()
        assert answers[0] == answers[1]
        stats = answers[0]
        assert stats.workflows_last_hour == stats.workflows_last_24h == stats.total_workflows
        assert set(stats.by_status) == {status.value for status in WorkflowStatus}
        return {name: count for name, count in stats.by_status.items() if count}

    assert await counted() == {"COMPLETED": 1, "FAILED": 1, "RUNNING": 1, "PENDING": 1}
    mesh.worker.failing.clear()
    await stub.ResumeWorkflow(workflows_service_pb2.ResumeWorkflowRequest(workflow_id=bad))
    await mesh.until(bad, lambda found: found.status == workflow_pb2.WORKFLOW_STATUS_COMPLETED)
    await stub.CancelWorkflow(workflows_service_pb2.CancelWorkflowRequest(workflow_id=slow))
    assert await counted() == {"COMPLETED": 2, "CANCELLED": 1, "PENDING": 1}
    await stub.CleanupWorkflow(workflows_service_pb2.CleanupWorkflowRequest(workflow_id=good))
    await stub.StartWorkflow(workflows_service_pb2.StartWorkflowRequest(workflow_id=waiting))
    await mesh.ended(waiting)
    assert await counted() == {"COMPLETED": 2, "CANCELLED": 1}
