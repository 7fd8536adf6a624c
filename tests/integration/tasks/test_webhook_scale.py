"""What a create and a delivery cost while many others wait, whatever the planner knows of the table."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from services.tasks.postgres import webhooks
from services.tasks.postgres.planning import HOT, HOT_SETTINGS, PLANNED_ANEW
from services.tasks.webhooks.domain import LEASE
from tests.integration.tasks.conftest import Mesh
from tests.integration.tasks.test_scale import nodes

WAITING = 20_000
NO_TIME = timedelta()


async def fill_deliveries(mesh: Mesh, *, analyze: bool, count: int = WAITING) -> None:
    await mesh.execute(
        "INSERT INTO webhook_deliveries "
        "(id, tenant, entity_id, entity_version, event_type, url, target, body, status, created_at, due_at) "
        "SELECT gen_random_uuid(), 't' || n %% 3, gen_random_uuid(), 1, 'task_completed', 'http://h/x', 'h:80', '', "
        "'PENDING', now(), now() FROM generate_series(1, %s) n",
        count,
    )
    if analyze:
        await mesh.execute("ANALYZE webhook_deliveries")


def statements() -> dict[str, tuple[str, Any]]:
    """The statements of a create, a claim, its extension and an outcome, with values."""
    ident, lease = uuid.uuid4(), uuid.uuid4()
    room = {"room": 64, "per_tenant": 64, "per_lane": 4, "tenants": Jsonb({}), "lanes": Jsonb({})}
    outcome = {"status": "DELIVERED", "failure": None, "sent": 1, "status_code": 200, "error": None, "wait": None}
    entity = {"entity": uuid.uuid4(), "tenant": "t1", "url": "http://h/x", "version": 1, "due_at": datetime.now(UTC)}
    return {
        "claim": (webhooks._CLAIM, {**room, "ahead": NO_TIME, "lease": LEASE}),
        "extend": (webhooks._EXTEND, (NO_TIME, LEASE, [ident], [lease])),
        "finish": (webhooks._FINISH, {**outcome, "id": ident, "lease": lease, "ahead": NO_TIME}),
        "followers": (webhooks._FOLLOWERS, {**entity, "id": ident, "ahead": NO_TIME}),
    }


@pytest.mark.parametrize("analyze", [False, True])
async def test_a_delivery_costs_the_same_however_many_wait(mesh: Mesh, analyze: bool) -> None:
    await fill_deliveries(mesh, analyze=analyze)
    for name, (statement, values) in statements().items():
        async with mesh.running.database.transaction() as conn:
            cursor = await conn.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", values)
            [[plan]] = await cursor.fetchall()
            await conn.execute("UPDATE webhook_deliveries SET lease = NULL WHERE lease IS NOT NULL")
        scans = [node for node in nodes(plan[0]["Plan"]) if node.get("Relation Name") == "webhook_deliveries"]
        read = sum(
            (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
            for node in scans
            if "Scan" in node["Node Type"]
        )
        assert read < WAITING / 20, f"{name} reads {read} rows"


async def test_a_create_looks_at_no_delivery_that_waits(mesh: Mesh) -> None:
    await fill_deliveries(mesh, analyze=False)
    row = [uuid.uuid4(), "t1", uuid.uuid4(), 1, "task_created", "http://h/x", "h:80", b"", None, None]
    columns = [[value] for value in row]
    async with mesh.running.database.transaction() as conn:
        for name, value in HOT_SETTINGS.items():
            await conn.execute(f"SET LOCAL {name} TO {value}")
        [[plan]] = await (await conn.execute(f"EXPLAIN (FORMAT JSON) {webhooks._INSERT}", columns)).fetchall()
    found = [node for node in nodes(plan[0]["Plan"]) if node.get("Relation Name") == "webhook_deliveries"]
    assert [node["Node Type"] for node in found] == ["ModifyTable"]


@pytest.mark.parametrize("name", ["claim", "extend", "finish", "followers"])
async def test_a_plan_made_while_few_waited_reads_few_of_many(mesh: Mesh, name: str) -> None:
    await fill_deliveries(mesh, analyze=True, count=10)
    statement, values = statements()[name]
    settings = PLANNED_ANEW if name == "claim" else HOT
    # The tables' statistics stay those of ten rows, as they do until the next ANALYZE.
    await mesh.execute("ALTER TABLE webhook_deliveries SET (autovacuum_enabled = off)")
    conn = await mesh.running.database.dedicated()
    try:
        for _ in range(8):
            async with conn.transaction(settings=settings):
                await (await conn.execute(statement, values)).fetchall()
        await mesh.execute("UPDATE webhook_deliveries SET lease = NULL, due_at = now() WHERE lease IS NOT NULL")
        await fill_deliveries(mesh, analyze=False)
        async with conn.transaction(settings=settings):
            await (await conn.execute(statement, values)).fetchall()
            query = (
                "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'webhook_deliveries'"
            )
            [[read]] = await (await conn.execute(query)).fetchall()
    finally:
        await conn.close()
    assert read < WAITING / 10
