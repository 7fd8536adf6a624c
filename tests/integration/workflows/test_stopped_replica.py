"""A replica of workflows that stands still: the other moves its workflows on, and no step runs twice."""

import asyncio
import itertools
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from meshkit.errors import MeshError
from tests.integration.workflows.conftest import Mesh, Process, Settings, create, noop
from tests.standstill import IN_A_CHANGE, stand_still

_SHAPE = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}
# No step is asked for: ends of tasks that the stopped replica was told of reach the other by their events alone.
_SETTINGS: dict[str, Any] = {"reconcile_interval_seconds": 0.3, "resend_seconds": 0.5, "check_seconds": 600.0}


async def rows(dsn: str, query: str, *values: object) -> Sequence[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(dsn, options="-c search_path=workflows", autocommit=True) as conn:
        return await (await conn.execute(query, values)).fetchall()


async def until(dsn: str, query: str, what: str, seconds: float = 60.0) -> None:
    """Wait until a query's one value is true."""
    try:
        async with asyncio.timeout(seconds):
            while not (await rows(dsn, query))[0][0]:  # noqa: ASYNC110 -- what is waited for lies in other processes
                await asyncio.sleep(0.1)
    except TimeoutError:
        pytest.fail(f"{what}: not within {seconds:g} s")


async def test_replica_that_stands_still_in_a_transaction_and_leads_holds_up_no_workflow(
    shared: Settings, start_tasks: Any, nats_url: str, mesh_dsn: str, tmp_path: Path
) -> None:
    tasks, worker = await start_tasks(nats_url)
    settings = shared(nats_url, tasks_address=tasks.address, **_SETTINGS)
    environment = {f"ATELIER_{name.upper()}": str(value) for name, value in settings.items()}
    numbers = itertools.count()
    async with AsyncExitStack() as stack:

        async def replica(name: str) -> tuple[Process, Mesh]:
            port_file = tmp_path / name
            process = Process({**environment, "ATELIER_PORT_FILE": str(port_file)}, port_file)
            mesh = Mesh(None, tasks, worker, await process.start())  # type: ignore[arg-type]  # it runs elsewhere
            stack.push_async_callback(process.kill)
            stack.push_async_callback(close, mesh)
            return process, mesh

        async def create_one(stub: Any) -> None:
            label = next(numbers)
            steps = [noop(name, *needs, config={"payload": f"{label}-{name}"}) for name, needs in _SHAPE.items()]
            await stub.CreateWorkflow(create(*steps))

        async def keep_creating(stub: Any) -> None:
            while True:
                await create_one(stub)
                await asyncio.sleep(0.05)

        still, door = await replica("still")
        await until(mesh_dsn, "SELECT count(*) > 0 FROM leaders", "the first replica leads")
        [[leader]] = await rows(mesh_dsn, "SELECT holder FROM leaders")
        _, other = await replica("other")
        load = asyncio.create_task(keep_creating(door.workflows()))
        assert still.process is not None
        await asyncio.to_thread(stand_still, still.process.pid, mesh_dsn, IN_A_CHANGE)
        load.cancel()
        with pytest.raises((asyncio.CancelledError, MeshError)):
            await load
        stub = other.workflows()
        for _ in range(10):
            await create_one(stub)

        ended = "SELECT count(*) = 0 FROM workflows WHERE status NOT IN ('COMPLETED', 'FAILED', 'CANCELLED')"
        await until(mesh_dsn, ended, "the workflows of both end")
        passed = f"SELECT count(*) > 0 FROM leaders WHERE holder <> '{leader}' AND expires_at > now()"
        await until(mesh_dsn, passed, "the other replica leads")
        await until(mesh_dsn, "SELECT count(*) = 0 FROM outbox", "the events of both are published")
        assert psutil.Process(still.process.pid).status() == psutil.STATUS_STOPPED

        # It comes back and believes to lead, to be in a transaction, to move workflows.
        still.process.send_signal(signal.SIGCONT)
        await create_one(stub)
        await until(mesh_dsn, ended, "the last workflow ends")
        outcomes = dict(await rows(mesh_dsn, "SELECT status::text, count(*) FROM workflows GROUP BY status"))
        assert set(outcomes) == {"COMPLETED"}
        assert outcomes["COMPLETED"] >= 11
        assert await other.task_count() == outcomes["COMPLETED"] * len(_SHAPE)
        assert len(worker.done) == len(set(worker.done)) == outcomes["COMPLETED"] * len(_SHAPE)


async def close(mesh: Mesh) -> None:
    for channel in mesh.channels:
        await channel.close()
