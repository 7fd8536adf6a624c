"""What survives: kill -9 of the workflows service, a NATS that dies and loses its disk, events that never arrive."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from atelier.workflows.v1 import workflow_pb2

from meshkit.channel import MeshChannel
from services.workflows import composition
from services.workflows.config import WorkflowsSettings
from tests.conftest import NatsControl
from tests.integration.workflows.conftest import Mesh, Process, Settings, Worker, create, noop

SHAPE = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ("d",), "f": ("d",)}
EAGER: dict[str, Any] = {"reconcile_interval_seconds": 0.3, "resend_seconds": 0.5, "check_seconds": 1.0}


def diamond(label: str) -> list[dict[str, Any]]:
    return [noop(name, *needs, config={"payload": f"{label}-{name}"}) for name, needs in SHAPE.items()]


async def all_end(mesh: Mesh, made: list[str], seconds: float = 60.0) -> None:
    for ident in made:
        done = await mesh.ended(ident, seconds)
        assert done.status == workflow_pb2.WORKFLOW_STATUS_COMPLETED, done.errors


async def test_a_service_killed_again_and_again_makes_no_task_twice(
    shared: Settings, start_tasks: Any, nats_url: str, tmp_path: Path
) -> None:
    tasks, worker = await start_tasks(nats_url)
    settings = shared(nats_url, tasks_address=tasks.address, **EAGER)
    environment = {f"ATELIER_{name.upper()}": str(value) for name, value in settings.items()}
    process = Process({**environment, "ATELIER_PORT_FILE": str(tmp_path / "port")}, tmp_path / "port")
    mesh = Mesh(None, tasks, worker, await process.start())  # type: ignore[arg-type]  # it runs elsewhere
    try:
        stub = mesh.workflows()
        made = [(await stub.CreateWorkflow(create(*diamond(str(at))))).workflow.id for at in range(10)]
        for share in (10, 25, 40):
            async with asyncio.timeout(60):
                while len(worker.done) < share:  # noqa: ASYNC110 -- the worker is driven by others
                    await asyncio.sleep(0.005)
            await process.kill()
            mesh.address = await process.start()
        await all_end(mesh, made)
        assert await mesh.task_count() == len(made) * len(SHAPE)
        assert len(worker.done) == len(set(worker.done)) == len(made) * len(SHAPE)
    finally:
        await process.kill()
        for channel in mesh.channels:
            await channel.close()


async def started(stack: AsyncExitStack, values: dict[str, Any], tasks: Any, worker: Worker) -> Mesh:
    running = await composition.start(WorkflowsSettings(**values, tasks_address=tasks.address, **EAGER), stack)
    mesh = Mesh(running, tasks, worker, running.address)

    async def close() -> None:
        for channel in mesh.channels:
            await channel.close()

    stack.push_async_callback(close)
    return mesh


async def test_workflows_complete_while_nats_is_dead_and_after_it_lost_its_disk(
    shared: Settings, start_tasks: Any, nats_server: NatsControl
) -> None:
    tasks, worker = await start_tasks(nats_server.url)
    async with AsyncExitStack() as stack:
        mesh = await started(stack, shared(nats_server.url), tasks, worker)
        stub = mesh.workflows()
        made = [(await stub.CreateWorkflow(create(*diamond(f"x{at}")))).workflow.id for at in range(5)]
        await asyncio.to_thread(nats_server.kill)
        made += [(await stub.CreateWorkflow(create(*diamond(f"y{at}")))).workflow.id for at in range(5)]
        await all_end(mesh, made)
        nats_server.wipe()
        await asyncio.to_thread(nats_server.start)
        made.append((await stub.CreateWorkflow(create(*diamond("z")))).workflow.id)
        await all_end(mesh, made)
        assert await mesh.task_count() == len(made) * len(SHAPE)
        assert len(worker.done) == len(set(worker.done))


async def test_a_dispatch_that_was_never_sent_is_sent_by_the_reconciler(mesh: Mesh) -> None:
    mesh.worker.held.add("a")
    made = (await mesh.workflows().CreateWorkflow(create(noop("a", config={"payload": "a"}), start=False))).workflow
    async with mesh.running.database.transaction() as conn:
        # What a process leaves that dies between its commit and its call.
        await conn.execute(
            "UPDATE workflows SET status = 'RUNNING', started_at = now(), current_step = 'a' WHERE id = %s", (made.id,)
        )
        await conn.execute(
            "UPDATE steps SET state = 'DISPATCHING', attempt = 1, task_id = gen_random_uuid(), task_open = true, "
            "dispatched_at = now() - interval '1 hour' WHERE workflow_id = %s",
            (made.id,),
        )
    mesh.worker.held.clear()
    done = await mesh.ended(made.id)
    assert done.status == workflow_pb2.WORKFLOW_STATUS_COMPLETED


async def test_a_tasks_service_that_is_away_only_delays(shared: Settings, start_tasks: Any, nats_url: str) -> None:
    tasks, worker = await start_tasks(nats_url)
    async with AsyncExitStack() as stack:
        mesh = await started(stack, shared(nats_url), tasks, worker)
        made = (await mesh.workflows().CreateWorkflow(create(*diamond("w")))).workflow
        # The calls go where nobody listens; then to where the service is.
        executor = mesh.running.executor
        real = executor._tasks
        async with MeshChannel("127.0.0.1:9", lambda: "none") as nowhere:
            executor._tasks = type(real)(nowhere, catalog_ttl_seconds=60)
            await asyncio.sleep(0.5)
            executor._tasks = real
        assert (await mesh.ended(made.id)).status == workflow_pb2.WORKFLOW_STATUS_COMPLETED
        assert await mesh.task_count() == len(SHAPE)
