"""A replica that stands still, as on a machine that hangs: the other goes on, and nothing is lost or doubled."""

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from atelier.tasks.v1.tasks_service_pb2 import CreateTaskRequest
from atelier.tasks.v1.tasks_service_pb2_grpc import TasksServiceStub

from meshkit.auth import TokenIssuer
from meshkit.channel import MeshChannel, call_metadata
from tests.conftest import S3Store
from tests.integration.tasks.conftest import SECRET, noop
from tests.integration.tasks.receivers import Receiver, receiving
from tests.standstill import IN_A_ROUND, stand_still

Start = Callable[..., Awaitable["Process"]]


class Process:
    """A service as a process of its own."""

    def __init__(self, running: asyncio.subprocess.Process, address: str) -> None:
        self.running = running
        self.address = address

    def go_on(self) -> None:
        self.running.send_signal(signal.SIGCONT)


@pytest.fixture
async def start(mesh_dsn: str, nats_url: str, s3: S3Store, bucket: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts services as processes; all are killed at the end."""
    environment = {
        **os.environ,
        "ATELIER_DATABASE_URL": mesh_dsn,
        "ATELIER_NATS_URL": nats_url,
        "ATELIER_S3_ENDPOINT": s3.endpoint,
        "ATELIER_S3_ACCESS_KEY": s3.access_key,
        "ATELIER_S3_SECRET_KEY": s3.secret_key,
        "ATELIER_S3_BUCKET": bucket,
        "ATELIER_AUTH_SECRET": SECRET,
        "ATELIER_ENABLE_NOOP": "true",
        "ATELIER_LISTEN": "127.0.0.1:0",
        "ATELIER_FETCH_ALLOW_PRIVATE": "127.0.0.0/8",
        "ATELIER_LEASE_TTL_SECONDS": "3",
        "ATELIER_WORKER_TASK_TYPES": "NOOP",
        "GRPC_ENABLE_FORK_SUPPORT": "0",
    }
    async with AsyncExitStack() as stack:

        async def begin(module: str, **settings: str) -> Process:
            folder = tmp_path / uuid.uuid4().hex
            folder.mkdir()
            port_file = folder / "port"
            own = {f"ATELIER_{name.upper()}": value for name, value in settings.items()}
            running = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                env={**environment, "ATELIER_PORT_FILE": str(port_file), "ATELIER_DATA": str(folder), **own},
            )

            async def end() -> None:
                if running.returncode is None:
                    running.kill()
                await running.wait()

            stack.push_async_callback(end)
            async with asyncio.timeout(60):
                while not port_file.exists():
                    assert running.returncode is None, "the process ended at its start"
                    await asyncio.sleep(0.05)
            return Process(running, port_file.read_text().strip())

        yield begin


class Caller:
    """Creates tasks with webhooks at one replica, and notes what was accepted."""

    def __init__(self, address: str, receiver: Receiver) -> None:
        token = TokenIssuer(SECRET).issue("ada", "acme", ("read", "write"), 600)
        self.channel = MeshChannel(address, lambda: token)
        self.stub: Any = self.channel.stub(TasksServiceStub)
        self.receiver = receiver
        self.accepted: list[str] = []

    async def create(self) -> str:
        answer = await self.stub.CreateTask(
            CreateTaskRequest(task=noop(noop={"steps": 1}, webhook_url=self.receiver.url)),
            metadata=call_metadata(idempotency_key=uuid.uuid4().hex),
        )
        self.accepted.append(answer.task.id)
        return str(answer.task.id)

    async def keep_creating(self) -> None:
        while True:
            await asyncio.gather(*(self.create() for _ in range(4)))
            await asyncio.sleep(0.05)


async def rows(dsn: str, query: str, *values: object) -> Sequence[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(dsn, options="-c search_path=tasks", autocommit=True) as conn:
        return await (await conn.execute(query, values)).fetchall()


async def until(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 60.0) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110 -- what is waited for lies in other processes
                await asyncio.sleep(0.1)
    except TimeoutError:
        pytest.fail(f"{what}: not within {seconds:g} s")


async def test_replica_that_stands_still_in_a_round_and_leads_holds_up_nobody(start: Start, mesh_dsn: str) -> None:
    still = await start("services.tasks")

    async def one_leads() -> bool:
        return bool(await rows(mesh_dsn, "SELECT work FROM leaders"))

    await until(one_leads, "the first replica leads")
    other = await start("services.tasks")
    for number, replica in enumerate((still, other)):
        await start("services.inference", tasks_address=replica.address, worker_name=f"worker-{number}")
    async with receiving() as receiver, AsyncExitStack() as stack:
        callers = [Caller(replica.address, receiver) for replica in (still, other)]
        for caller in callers:
            stack.push_async_callback(caller.channel.close)
        loads = [asyncio.create_task(caller.keep_creating()) for caller in callers]
        stack.callback(lambda: [load.cancel() for load in loads])
        await asyncio.to_thread(stand_still, still.running.pid, mesh_dsn, IN_A_ROUND)
        loads[0].cancel()

        # While it stands still, the other goes on with what comes after.
        before = len(callers[1].accepted)

        async def later_ones_end() -> bool:
            later = callers[1].accepted[before : before + 20]
            [[ended]] = await rows(
                mesh_dsn, "SELECT count(*) FROM tasks WHERE id = ANY(%s::uuid[]) AND status = 'COMPLETED'", later
            )
            told = {body["task_id"] for body in receiver.bodies if body["status"] == "COMPLETED"}
            return int(ended) == 20 and told.issuperset(later)

        await until(later_ones_end, "tasks of the other replica end, and their receiver is told")

        async def events_leave() -> bool:
            [[oldest]] = await rows(mesh_dsn, "SELECT extract(epoch FROM now() - min(created_at)) FROM outbox")
            return oldest is None or oldest < 5

        await until(events_leave, "the other replica publishes the events of both")
        assert still.running.returncode is None
        assert psutil.Process(still.running.pid).status() == psutil.STATUS_STOPPED

        # It comes back and believes to lead, to hold a round, to send webhooks.
        still.go_on()
        loads[1].cancel()
        accepted = [task for caller in callers for task in caller.accepted]

        async def all_end() -> bool:
            ended = await rows(mesh_dsn, "SELECT id::text FROM tasks WHERE status = 'COMPLETED'")
            told = {body["task_id"] for body in receiver.bodies if body["status"] == "COMPLETED"}
            [[waiting]] = await rows(mesh_dsn, "SELECT count(*) FROM outbox")
            return {row[0] for row in ended}.issuperset(accepted) and told.issuperset(accepted) and not waiting

        await until(all_end, "all accepted tasks end, and everyone is told", 90)
        assert not await rows(
            mesh_dsn,
            "SELECT task_id FROM attempts WHERE outcome = 'COMPLETED' GROUP BY task_id HAVING count(*) > 1",
        ), "an attempt was completed twice"
        told: dict[str, set[str]] = {}
        for ident, body in zip(receiver.ids, receiver.bodies, strict=True):
            if body["status"] == "COMPLETED":
                told.setdefault(body["task_id"], set()).add(ident)
        assert {len(each) for each in told.values()} == {1}, "an end was told under two ids"
