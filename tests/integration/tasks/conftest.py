"""The tasks service as production composes it, on real PostgreSQL, NATS and object store, spoken to over gRPC."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from atelier.tasks.v1 import enums_pb2, task_pb2, tasks_service_pb2, worker_service_pb2
from atelier.tasks.v1.tasks_service_pb2_grpc import TasksServiceStub
from atelier.tasks.v1.worker_service_pb2_grpc import WorkerServiceStub
from google.protobuf.duration_pb2 import Duration

from meshkit.auth import TokenIssuer
from meshkit.channel import MeshChannel
from services.tasks.composition import TasksRuntime, start
from services.tasks.config import TasksSettings
from tests.conftest import S3Store

SECRET = "tests-only-tests-only-tests-only-tests-only"
NOOP = enums_pb2.TASK_TYPE_NOOP


def noop(**members: Any) -> task_pb2.CreateTask:
    detail = members.pop("noop", {})
    return task_pb2.CreateTask(origin_instance="tests", noop=detail, **members)


@dataclass
class Worker:
    """A worker as the wire sees it: it takes leases and ends attempts by hand."""

    stub: Any
    session: str
    sequence: int = 0

    async def lease(
        self,
        count: int = 1,
        wait: float = 20.0,
        *,
        repeat: bool = False,
        loras: tuple[str, ...] = (),
        full: tuple[str, ...] = (),
    ) -> list[worker_service_pb2.Lease]:
        self.sequence += 0 if repeat else 1
        response = await self.stub.Lease(
            worker_service_pb2.LeaseRequest(
                session_id=self.session,
                sequence=self.sequence,
                max_leases=count,
                wait=duration(wait),
                warm=worker_service_pb2.WarmState(loras=loras),
                full_tenants=full,
            )
        )
        return list(response.leases)

    async def complete(self, lease: worker_service_pb2.Lease, *objects: str, seconds: float = 0.0) -> None:
        result = task_pb2.TaskResult()
        if objects:
            result.noop.result_path = objects[0]
        await self.stub.Complete(
            worker_service_pb2.CompleteRequest(
                session_id=self.session,
                ref=ref(lease),
                result=result,
                objects=[worker_service_pb2.ResultObject(path=path) for path in objects],
                device_seconds=seconds,
            )
        )

    async def complete_many(self, *completions: worker_service_pb2.Completion) -> list[str]:
        """Verdicts on these, in order."""
        response = await self.stub.CompleteMany(
            worker_service_pb2.CompleteManyRequest(session_id=self.session, completions=completions)
        )
        return [
            worker_service_pb2.CompletionVerdict.Name(each.verdict).removeprefix("COMPLETION_VERDICT_")
            for each in response.outcomes
        ]

    async def fail(self, lease: worker_service_pb2.Lease, message: str = "broken", *, retryable: bool = True) -> bool:
        response = await self.stub.Fail(
            worker_service_pb2.FailRequest(
                session_id=self.session,
                ref=ref(lease),
                message=message,
                category=enums_pb2.ERROR_CATEGORY_PROVIDER,
                retryable=retryable,
            )
        )
        return bool(response.requeued)

    async def heartbeat(
        self, *held: worker_service_pb2.Lease, draining: bool = False
    ) -> list[worker_service_pb2.AttemptRef]:
        response = await self.stub.Heartbeat(
            worker_service_pb2.HeartbeatRequest(
                session_id=self.session, held=[ref(lease) for lease in held], draining=draining
            )
        )
        return list(response.give_up)

    async def report(
        self, lease: worker_service_pb2.Lease, progress: float, step: int = 0, preview: bytes = b""
    ) -> Any:
        item = worker_service_pb2.Progress(ref=ref(lease), progress=progress, step=step, preview=preview)
        return await self.stub.Report(worker_service_pb2.ReportRequest(session_id=self.session, progress=[item]))

    async def release(self, *leases: worker_service_pb2.Lease) -> None:
        await self.stub.Release(
            worker_service_pb2.ReleaseRequest(session_id=self.session, refs=[ref(lease) for lease in leases])
        )

    async def close(self) -> None:
        await self.stub.CloseSession(worker_service_pb2.CloseSessionRequest(session_id=self.session))


def ref(lease: worker_service_pb2.Lease) -> worker_service_pb2.AttemptRef:
    return worker_service_pb2.AttemptRef(job_id=lease.job_id, attempt=lease.attempt)


def completion(lease: worker_service_pb2.Lease, *objects: str) -> worker_service_pb2.Completion:
    result = task_pb2.TaskResult()
    if objects:
        result.noop.result_path = objects[0]
    return worker_service_pb2.Completion(
        ref=ref(lease), result=result, objects=[worker_service_pb2.ResultObject(path=path) for path in objects]
    )


def duration(seconds: float) -> Duration:
    value = Duration()
    value.FromMilliseconds(int(seconds * 1000))
    return value


@dataclass
class Mesh:
    """A running service and who talks to it."""

    running: TasksRuntime
    settings: TasksSettings
    stack: AsyncExitStack
    issuer: TokenIssuer = field(default_factory=lambda: TokenIssuer(SECRET))
    channels: list[MeshChannel] = field(default_factory=list)

    def token(self, tenant: str = "acme", scopes: tuple[str, ...] = ("read", "write"), **more: Any) -> str:
        return self.issuer.issue(more.pop("subject", f"user-of-{tenant}"), tenant, scopes, 600, **more)

    def channel(self, token: str) -> MeshChannel:
        channel = MeshChannel(self.running.address, lambda: token)
        self.channels.append(channel)
        return channel

    def tasks(self, tenant: str = "acme", scopes: tuple[str, ...] = ("read", "write"), **more: Any) -> Any:
        return self.channel(self.token(tenant, scopes, **more)).stub(TasksServiceStub)

    def workers(self, subject: str = "worker", queues: tuple[str, ...] | None = None) -> Any:
        return self.channel(self.token("", ("worker",), subject=subject, queues=queues)).stub(WorkerServiceStub)

    async def worker(
        self,
        *,
        queues: tuple[str, ...] = ("inference",),
        types: tuple[int, ...] = (NOOP,),
        providers: tuple[int, ...] = (),
        pairs: tuple[worker_service_pb2.ServedPair, ...] = (),
        name: str = "w/0",
        subject: str = "worker",
    ) -> Worker:
        stub = self.workers(subject)
        opened = await stub.OpenSession(
            worker_service_pb2.OpenSessionRequest(
                name=name,
                kind="local",
                queues=queues,
                slots=4,
                task_types=types,  # type: ignore[arg-type] # numbers off the wire
                provider_types=providers,  # type: ignore[arg-type]  # stubs are untyped here
                pairs=pairs,
            )
        )
        return Worker(stub, opened.session_id)

    async def create(self, task: task_pb2.CreateTask | None = None, tenant: str = "acme", **more: Any) -> task_pb2.Task:
        stub = more.pop("stub", None) or self.tasks(tenant)
        request = tasks_service_pb2.CreateTaskRequest(task=task or noop(), **more)
        response = await stub.CreateTask(request)
        return response.task  # type: ignore[no-any-return]  # stubs are untyped here

    async def get(self, task_id: str, tenant: str = "acme") -> task_pb2.Task:
        response = await self.tasks(tenant).GetTask(tasks_service_pb2.GetTaskRequest(task_id=task_id))
        return response.task  # type: ignore[no-any-return]  # stubs are untyped here

    async def attempts(self, task_id: str, tenant: str = "acme") -> list[Any]:
        request = tasks_service_pb2.ListTaskAttemptsRequest(task_id=task_id)
        return list((await self.tasks(tenant).ListTaskAttempts(request)).attempts)

    async def rows(self, query: str, *values: Any) -> list[Any]:
        async with self.running.database.connection() as conn:
            cursor = await conn.execute(query, values)
            return await cursor.fetchall()

    async def execute(self, query: str, *values: Any) -> None:
        async with self.running.database.transaction() as conn:
            await conn.execute(query, values)


StartMesh = Callable[..., Awaitable[Mesh]]


@pytest.fixture(scope="module")
def bucket(s3: S3Store) -> str:
    return s3.bucket()


@pytest.fixture
async def start_mesh(mesh_dsn: str, nats_url: str, s3: S3Store, bucket: str) -> AsyncIterator[StartMesh]:
    """Starts replicas of the service on one database; loops run only where asked for."""
    async with AsyncExitStack() as outer:

        async def begin(**settings: Any) -> Mesh:
            values: dict[str, Any] = {
                "listen": "127.0.0.1:0",
                "database_url": mesh_dsn,
                "nats_url": nats_url,
                "s3_endpoint": s3.endpoint,
                "s3_access_key": s3.access_key,
                "s3_secret_key": s3.secret_key,
                "s3_bucket": bucket,
                "auth_secret": SECRET,
                "enable_noop": True,
                "run_loops": False,
                "shutdown_grace_seconds": 0.2,
                "retry_base_seconds": 0.05,
                # A busy machine takes its time: tests have sessions and waits end themselves.
                "image_wait_seconds": 120,
                "lease_ttl_seconds": 600,
            } | settings
            configured = TasksSettings(**values)
            stack = await outer.enter_async_context(AsyncExitStack())
            mesh = Mesh(await start(configured, stack), configured, stack)

            async def close_channels() -> None:
                for channel in mesh.channels:
                    await channel.close()

            stack.push_async_callback(close_channels)
            return mesh

        yield begin


@pytest.fixture
async def mesh(start_mesh: StartMesh) -> Mesh:
    return await start_mesh()


async def fill(mesh: Mesh, *, rows: int, tenants: int, analyze: bool = True) -> None:
    """Writes many waiting tasks at once, with the counters that go with them; the planner is told of them or not."""
    await mesh.execute("TRUNCATE tasks, attempts, outbox, queues, queue_tenants, queue_lanes CASCADE")
    await mesh.create(tenant="template")
    await mesh.execute(
        "INSERT INTO tasks SELECT r.* FROM tasks t, generate_series(1, %s) n, LATERAL jsonb_populate_record(t, "
        "jsonb_build_object('id', gen_random_uuid(), 'tenant', 't' || n %% %s, 'priority', n %% 3, "
        "'created_at', t.created_at + n * interval '1 ms')) r",
        rows,
        tenants,
    )
    await mesh.execute("DELETE FROM tasks WHERE tenant = 'template'")
    await mesh.execute("TRUNCATE queue_tenants, queue_lanes")
    await mesh.execute("INSERT INTO queue_tenants SELECT queue_name, tenant, 0, count(*), 0 FROM tasks GROUP BY 1, 2")
    await mesh.execute(
        "INSERT INTO queue_lanes SELECT queue_name, tenant, lane, 0, count(*) FROM tasks GROUP BY 1, 2, 3"
    )
    if analyze:
        await mesh.execute("ANALYZE")


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    """Waits for a condition, not for a time."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 -- what is waited for lies in another process
            await asyncio.sleep(0.02)


async def waits_for_lock(mesh: Mesh) -> bool:
    """Whether some transaction waits for another's lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    [[count]] = await mesh.rows(query)
    return bool(count)


async def outcomes(mesh: Mesh, task_id: str) -> list[str]:
    """How a task's attempts ended."""
    name = tasks_service_pb2.AttemptOutcome.Name
    return [name(each.outcome).removeprefix("ATTEMPT_OUTCOME_") for each in await mesh.attempts(task_id)]


async def age_session(mesh: Mesh, worker: Worker) -> None:
    """Has a session's time run out."""
    await mesh.execute("UPDATE sessions SET expires_at = now() - interval '1 s' WHERE id = %s", worker.session)
