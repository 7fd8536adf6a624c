"""Workflows that ended long ago go with their tasks and files, unless something of theirs is needed yet."""

import asyncio
from typing import Any

import pytest
from atelier.tasks.v1 import retention_pb2, retention_service_pb2
from atelier.tasks.v1.retention_service_pb2_grpc import RetentionServiceStub
from atelier.workflows.v1 import monitoring_service_pb2, workflows_service_pb2
from atelier.workflows.v1.monitoring_service_pb2_grpc import WorkflowMonitoringServiceStub

from meshkit.auth import TokenIssuer
from meshkit.channel import MeshChannel
from meshkit.errors import ErrorKind, MeshError
from meshkit.objects import ObjectStore
from services.tasks.retention.domain import RetentionKind
from services.workflows.config import WorkflowsSettings
from tests.integration.workflows.conftest import SECRET, Mesh, Settings, create, noop
from tests.integration.workflows.test_files import DATA, adjust


@pytest.fixture
async def objects(shared: Settings, nats_url: str, mesh: Mesh) -> Any:
    del mesh
    store = ObjectStore.from_settings(WorkflowsSettings(**shared(nats_url)))
    yield store
    await store.close()


async def rows(database: Any, query: str, *values: Any) -> list[Any]:
    async with database.transaction() as conn:
        cursor = await conn.execute(query, values)
        return list(await cursor.fetchall()) if cursor.description else []


async def keep(mesh: Mesh, days: int, tenant: str = "*") -> None:
    token = TokenIssuer(SECRET).issue("ops", "ops", ("operator",), 600)
    async with MeshChannel(mesh.tasks.address, lambda: token) as channel:
        await channel.stub(RetentionServiceStub).SetRetention(
            retention_service_pb2.SetRetentionRequest(
                kind=retention_pb2.RETENTION_KIND_WORKFLOWS, tenant=tenant, days=days
            )
        )


async def age(mesh: Mesh, days: int) -> None:
    """Lets all that has ended have ended so many days ago."""
    for database, table in ((mesh.running.database, "workflows"), (mesh.tasks.database, "tasks")):
        await rows(
            database,
            f"UPDATE {table} SET created_at = created_at - make_interval(days => %s), "
            "completed_at = completed_at - make_interval(days => %s)",
            days,
            days,
        )
    await rows(mesh.running.database, "UPDATE workflows SET told_end = completed_at WHERE told_end IS NOT NULL")


async def prune(mesh: Mesh) -> None:
    """Makes one pass, and sweeps."""
    mesh.running.retention._rest = 0.0
    while await mesh.running.retention.run_once():
        pass
    for maintenance, delay in ((mesh.running.maintenance, "file"), (mesh.tasks.maintenance, "object")):
        part: Any = maintenance
        part._settings = part._settings.model_copy(update={f"{delay}_sweep_delay_seconds": 0.0})
    while await mesh.running.maintenance.sweep_files():
        pass
    while await mesh.tasks.maintenance.sweep_objects():
        pass


async def left(mesh: Mesh) -> set[str]:
    return {row[0] for row in await rows(mesh.running.database, "SELECT id::text FROM workflows")}


async def completed(mesh: Mesh, tenant: str = "acme", **more: Any) -> str:
    made = (await mesh.workflows(tenant).CreateWorkflow(create(noop("a"), noop("b", "a"), **more))).workflow
    query = "SELECT completed_at FROM workflows WHERE id = %s"
    async with asyncio.timeout(60):
        while (await rows(mesh.running.database, query, made.id))[0][0] is None:  # noqa: ASYNC110 -- of another process
            await asyncio.sleep(0.05)
    return str(made.id)


async def test_an_old_workflow_goes_with_its_tasks_and_files(mesh: Mesh, objects: ObjectStore) -> None:
    made = (await mesh.workflows().CreateWorkflow(create(noop("a"), adjust("b", DATA), start=False))).workflow
    done, young = await completed(mesh), await completed(mesh)
    tasks = await mesh.task_count()
    await objects.put("acme", f"workflows/{done}/0-input_image.png", b"x", "image/png")
    await objects.put("acme", f"workflows/{young}/0-input_image.png", b"x", "image/png")
    await age(mesh, 10)
    await rows(mesh.running.database, "UPDATE workflows SET completed_at = now() WHERE id = %s", young)
    await prune(mesh)
    assert await left(mesh) == {made.id, done, young}, "without an age nothing is deleted"
    await keep(mesh, 9)
    preview = mesh.channel("ops", ("support",)).stub(WorkflowMonitoringServiceStub)
    request = monitoring_service_pb2.PreviewWorkflowRetentionRequest
    [line] = (await preview.PreviewWorkflowRetention(request())).lines
    assert (line.tenant, line.days, line.rows, line.bytes_estimated) == ("acme", 9, 1, False)
    assert line.bytes > 100
    assert list((await preview.PreviewWorkflowRetention(request(days=11))).lines) == []
    await prune(mesh)
    assert await left(mesh) == {made.id, young}, "one that has not ended stays, however old"
    assert await mesh.task_count() == tasks - 2
    paths = [one.path for one in await objects.list("acme", "workflows/")]
    assert {path.split("/")[1] for path in paths} == {made.id, young}
    assert await rows(mesh.running.database, "SELECT count(*) FROM file_sweeps") == [(0,)]
    with pytest.raises(MeshError) as error:
        await mesh.get(done)
    assert error.value.kind is ErrorKind.NOT_FOUND


async def test_tasks_of_workflows_stay_as_long_as_their_workflow(mesh: Mesh) -> None:
    done = await completed(mesh)
    await age(mesh, 100)
    token = TokenIssuer(SECRET).issue("ops", "ops", ("operator",), 600)
    async with MeshChannel(mesh.tasks.address, lambda: token) as channel:
        await channel.stub(RetentionServiceStub).SetRetention(
            retention_service_pb2.SetRetentionRequest(kind=retention_pb2.RETENTION_KIND_TASKS, tenant="*", days=1)
        )
    while await mesh.tasks.retention.prunings[RetentionKind.TASKS].run_once():
        pass
    assert (await mesh.task_count(), await left(mesh)) == (2, {done})


async def test_a_workflow_stays_until_its_webhook_is_told(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object) -> None:
        raise MeshError(ErrorKind.UNAVAILABLE, "away", reason="AWAY")

    done = await completed(mesh)
    await age(mesh, 10)
    await keep(mesh, 1)
    with monkeypatch.context() as patched:
        patched.setattr("services.workflows.task_calls.TaskCalls.enqueue_webhook", away)
        await rows(mesh.running.database, "UPDATE workflows SET webhook_url = 'https://example.com/hook'")
        await prune(mesh)
        assert await rows(mesh.running.database, "SELECT id::text, is_deleted FROM workflows") == [(done, False)]
    await rows(mesh.running.database, "UPDATE workflows SET told_end = completed_at")
    await prune(mesh)
    assert await left(mesh) == set()


async def test_a_workflow_stays_until_the_webhooks_of_its_tasks_are_delivered(mesh: Mesh) -> None:
    done = await completed(mesh)
    await age(mesh, 10)
    await keep(mesh, 1)
    [(task,)] = await rows(mesh.tasks.database, "SELECT id FROM tasks ORDER BY created_at LIMIT 1")
    await rows(
        mesh.tasks.database,
        "INSERT INTO webhook_deliveries (id, tenant, entity_id, entity_version, event_type, url, target, body, status, "
        "created_at, due_at) VALUES (gen_random_uuid(), 'acme', %s, 1, 'x', 'https://e.com', 'e.com:443', '', "
        "'PENDING', now(), now() + interval '1 day')",
        task,
    )
    await prune(mesh)
    assert await left(mesh) == {done}
    assert await rows(mesh.tasks.database, "SELECT id FROM tasks") == [(task,)]
    await rows(mesh.tasks.database, "DELETE FROM webhook_deliveries")
    await prune(mesh)
    assert (await left(mesh), await mesh.task_count()) == (set(), 0)


async def test_nothing_is_lost_where_the_tasks_service_goes_away_in_between(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    await completed(mesh)
    await age(mesh, 10)
    await keep(mesh, 1)

    async def away(*_: object) -> bool:
        raise MeshError(ErrorKind.UNAVAILABLE, "away", reason="AWAY")

    with monkeypatch.context() as patched:
        patched.setattr("services.workflows.task_calls.TaskCalls.forget_all", away)
        mesh.running.retention._rest = 0.0
        with pytest.raises(MeshError):
            await mesh.running.retention.run_once()
    assert await rows(mesh.running.database, "SELECT is_deleted FROM workflows") == [(True,)]
    await prune(mesh)
    assert (await left(mesh), await mesh.task_count()) == (set(), 0)


async def test_tenants_have_ages_of_their_own(mesh: Mesh) -> None:
    kept, gone = await completed(mesh), await completed(mesh, "short")
    await age(mesh, 10)
    await keep(mesh, 30)
    await keep(mesh, 5, "short")
    await prune(mesh)
    assert (await left(mesh), gone != kept) == ({kept}, True)


async def test_a_task_stays_while_a_workflow_that_has_not_ended_names_its_file(mesh: Mesh) -> None:
    done = await completed(mesh)
    await rows(mesh.tasks.database, "UPDATE tasks SET workflow_id = NULL")
    [(named,), (other,)] = await rows(mesh.tasks.database, "SELECT id::text FROM tasks ORDER BY created_at")
    path = f"noops/{named}/1/image.png"
    made = (await mesh.workflows().CreateWorkflow(create(adjust("a", path), start=False))).workflow
    await mesh.running.holds.renew()
    assert await rows(mesh.tasks.database, "SELECT task_id::text FROM task_holds") == [(named,)]
    await age(mesh, 10)
    token = TokenIssuer(SECRET).issue("ops", "ops", ("operator",), 600)
    async with MeshChannel(mesh.tasks.address, lambda: token) as channel:
        await channel.stub(RetentionServiceStub).SetRetention(
            retention_service_pb2.SetRetentionRequest(kind=retention_pb2.RETENTION_KIND_TASKS, tenant="*", days=1)
        )
    pruning = mesh.tasks.retention.prunings[RetentionKind.TASKS]

    async def left_tasks() -> set[str]:
        while await pruning.run_once():
            pass
        return {row[0] for row in await rows(mesh.tasks.database, "SELECT id::text FROM tasks")}

    assert await left_tasks() == {named}
    await mesh.workflows().CancelWorkflow(workflows_service_pb2.CancelWorkflowRequest(workflow_id=made.id))

    async def all_gone() -> bool:
        await rows(mesh.tasks.database, "UPDATE task_holds SET held_until = now() - interval '1 second'")
        await mesh.running.holds.renew()
        return not await left_tasks()

    # The services' own loops hold and prune too: theirs may have begun before the cancel.
    for _ in range(300):
        if await all_gone():
            break
        await asyncio.sleep(0.1)
    else:
        pytest.fail("the task is kept")
    assert (other != named, done != made.id) == (True, True)
