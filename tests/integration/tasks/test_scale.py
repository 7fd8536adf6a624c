import asyncio
import json
from typing import Any

import pytest

from meshkit.pipeline import Pipeline, _parse
from services.tasks.postgres import columns, counters, creates, endings, rounds, sessions, sweeps
from services.tasks.postgres.planning import HOT_SETTINGS
from services.tasks.postgres.rounds import CANDIDATES
from tests.integration.tasks.conftest import Mesh, StartMesh, completion, fill, until


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", ()) for node in nodes(child))]


async def candidates_plan(mesh: Mesh) -> list[dict[str, Any]]:
    query = f"EXPLAIN (ANALYZE, FORMAT JSON) {CANDIDATES}"
    arguments = (["t1", "t2", "t3"], [16, 16, 16], ["NOOP/LOCAL", "GENERATION/LOCAL"], "inference")
    [[plan]] = await mesh.rows(query, *arguments)
    return nodes((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_lease_query_uses_its_index_at_a_million_rows(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(database_statement_timeout_seconds=0)
    await fill(mesh, rows=1_000_000, tenants=100)
    await mesh.execute("UPDATE tasks SET status = 'CANCELLED', completed_at = now() WHERE random() < 0.5")
    await mesh.execute("ANALYZE tasks")
    plan = await candidates_plan(mesh)
    scans = [node for node in plan if node.get("Relation Name") == "tasks"]
    assert [node["Index Name"] for node in scans] == ["tasks_waiting"]
    assert all(node["Actual Rows"] <= 16 for node in scans)
    assert plan[0]["Actual Total Time"] < 50
    assert not [node for node in plan if node["Node Type"] == "Seq Scan"]


async def test_lease_query_uses_its_index_at_twenty_thousand_rows(mesh: Mesh) -> None:
    await fill(mesh, rows=20_000, tenants=20)
    plan = await candidates_plan(mesh)
    assert {node.get("Index Name") for node in plan if node.get("Relation Name") == "tasks"} == {"tasks_waiting"}


HOT = (
    (endings._COMPLETE, {"tasks_pkey", None}),
    (rounds._GRANT, {"tasks_pkey", None}),
    (rounds._REGISTER, {"sessions_pkey"}),
    (rounds._CONFIRM, {"sessions_pkey"}),
    (creates._WITHDRAW, {"task_ids_pkey", "tasks_pkey", None}),
    (sessions._WRITE_PROGRESS, {"tasks_pkey"}),
    (counters._TENANTS, {"queues_pkey"}),
    (counters._ENTER, {"queue_tenants_pkey"}),
    (counters._FOLLOW, {"queue_lanes_pkey", "queue_tenants_pkey"}),
)


@pytest.mark.parametrize("rows", [None, 3, 2_000])
async def test_hot_statements_look_rows_up_by_their_key(start_mesh: StartMesh, rows: int | None) -> None:
    mesh = await start_mesh()
    if rows is not None:
        await fill(mesh, rows=rows, tenants=5)
    async with mesh.running.database.transaction() as conn:
        for name, value in HOT_SETTINGS.items():
            await conn.execute(f"SET LOCAL {name} TO {value}")
        for statement, keys in HOT:
            explained = await conn.execute(b"EXPLAIN (GENERIC_PLAN, FORMAT JSON) " + _parse(statement).text)
            [[plan]] = await explained.fetchall()
            scans = [node for node in nodes(plan[0]["Plan"]) if "Relation Name" in node and "Scan" in node["Node Type"]]
            assert {scan.get("Index Name") for scan in scans} == keys, statement
            assert all(scan.get("Index Cond") or scan.get("TID Cond") for scan in scans), statement


RARE = (endings._REPORTED, rounds._REPLAY, counters._RECOUNT_LANES, counters._RECOUNT_TENANTS, sessions._ACKNOWLEDGE)
SETTINGS = "SELECT " + ", ".join(f"current_setting('{name}')" for name in HOT_SETTINGS)


async def test_settings_of_hot_statements_reach_no_others(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[Any, set[Any]] = {}
    execute = Pipeline.execute

    async def watched(self: Pipeline, query: Any, *arguments: Any, **options: Any) -> Any:
        before = await execute(self, SETTINGS)
        rows = await execute(self, query, *arguments, **options)
        seen.setdefault(query, set()).add(tuple(await before.fetchone() or ()))
        return rows

    async with mesh.running.database.connection() as conn:
        defaults = await (await conn.execute(SETTINGS.encode())).fetchone()
    monkeypatch.setattr(Pipeline, "execute", watched)
    worker = await mesh.worker()
    parked = asyncio.create_task(worker.lease())

    async def noted() -> bool:
        return rounds._REGISTER in seen

    await until(noted)
    await mesh.create()
    [lease] = await parked
    assert await worker.lease(repeat=True) == [lease]
    await worker.report(lease, 50.0)
    await mesh.running.maintenance._sessions._progress.flush()
    for _ in range(2):
        assert await worker.complete_many(completion(lease)) == ["TAKEN"]
    for table in ("queue_lanes", "queue_tenants"):
        await mesh.execute(f"UPDATE {table} SET pending = 5")
    assert await worker.lease(wait=0.1) == []
    hot = [statement for statement, _ in HOT if statement is not creates._WITHDRAW]
    assert all(seen[statement] == {tuple(HOT_SETTINGS.values())} for statement in hot)
    assert all(seen[statement] == {defaults} for statement in RARE)


@pytest.mark.parametrize("analyze", [False, True])
async def test_upkeep_looks_for_tasks_by_what_it_looks_for(mesh: Mesh, analyze: bool) -> None:
    await fill(mesh, rows=20_000, tenants=5, analyze=analyze)
    for statement, arguments, index in (
        (sweeps.FIND_OVERDUE, (30.0,), "tasks_leased"),
        (sweeps.PROMOTE, (), "tasks_delayed"),
    ):
        [[plan]] = await mesh.rows(f"EXPLAIN (FORMAT JSON) {statement}", *arguments)
        locked = [each for node in nodes(plan[0]["Plan"]) if node["Node Type"] == "LockRows" for each in nodes(node)]
        assert {node["Index Name"] for node in locked if "Relation Name" in node} == {index}


async def test_strings_are_written_as_an_array_of_them(mesh: Mesh) -> None:
    values = ["", "plain", 'a "quoted", one', "back\\slash", "{braces}", "null", "NULL", "новый\n\tline"]
    [[read]] = await mesh.rows("SELECT %s::text[]", columns.array(values))
    assert read == values
