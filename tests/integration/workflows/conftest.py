"""The workflows service as production composes it, with a real tasks service, PostgreSQL, NATS and object store."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from atelier.tasks.v1 import enums_pb2, task_pb2, worker_service_pb2
from atelier.tasks.v1.worker_service_pb2_grpc import WorkerServiceStub
from atelier.workflows.v1 import workflow_pb2, workflows_service_pb2
from atelier.workflows.v1.monitoring_service_pb2_grpc import WorkflowMonitoringServiceStub
from atelier.workflows.v1.workflows_service_pb2_grpc import WorkflowsServiceStub
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration

from meshkit.auth import TokenIssuer
from meshkit.channel import MeshChannel
from meshkit.errors import ErrorKind, MeshError
from services.tasks import composition as tasks_composition
from services.tasks.config import TasksSettings
from services.workflows import composition as workflows_composition
from services.workflows.config import WorkflowsSettings
from tests.conftest import S3Store

SECRET = "tests-only-tests-only-tests-only-tests-only"
ENDED = {
    workflow_pb2.WORKFLOW_STATUS_COMPLETED,
    workflow_pb2.WORKFLOW_STATUS_FAILED,
    workflow_pb2.WORKFLOW_STATUS_CANCELLED,
}


def noop(name: str, *needs: str, **more: Any) -> dict[str, Any]:
    config = more.pop("config", {})
    return {"id": name, "task_type": "TASK_TYPE_NOOP", "depends_on": list(needs), "config": config, **more}


def create(*steps: dict[str, Any], start: bool = True, **more: Any) -> workflows_service_pb2.CreateWorkflowRequest:
    message = {"name": "pipeline", "origin_instance": "tests", "steps": list(steps), **more}
    workflow = json_format.ParseDict(message, workflow_pb2.CreateWorkflow())
    return workflows_service_pb2.CreateWorkflowRequest(workflow=workflow, start=start)


@dataclass
class Worker:
    """Does NOOP tasks as fast as they come: `held` ones wait, `failing` payloads fail."""

    stub: Any
    done: list[str] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)

    async def run(self) -> None:
        kind = enums_pb2.TASK_TYPE_NOOP
        opened = await self.stub.OpenSession(
            worker_service_pb2.OpenSessionRequest(
                name="w/0", kind="local", queues=["inference"], slots=64, task_types=[kind]
            )
        )
        session, sequence = opened.session_id, 0
        waiting: list[worker_service_pb2.Lease] = []
        while True:
            sequence += 1
            wait = Duration(nanos=50_000_000) if waiting else Duration(seconds=1)
            request = worker_service_pb2.LeaseRequest(session_id=session, sequence=sequence, max_leases=16, wait=wait)
            try:
                waiting += (await self.stub.Lease(request)).leases
                refs = [worker_service_pb2.AttemptRef(job_id=one.job_id, attempt=one.attempt) for one in waiting]
                await self.stub.Heartbeat(worker_service_pb2.HeartbeatRequest(session_id=session, held=refs))
            except MeshError:
                await asyncio.sleep(0.1)  # the service is being started again
                continue
            waiting = [lease for lease in waiting if not await self._end(session, lease)]

    async def _end(self, session: str, lease: worker_service_pb2.Lease) -> bool:
        payload = lease.spec.noop.payload
        if payload in self.held:
            return False
        ref = worker_service_pb2.AttemptRef(job_id=lease.job_id, attempt=lease.attempt)
        try:
            if payload in self.failing:
                await self.stub.Fail(
                    worker_service_pb2.FailRequest(
                        session_id=session,
                        ref=ref,
                        message="broken",
                        category=enums_pb2.ERROR_CATEGORY_PROVIDER,
                        retryable=False,
                    )
                )
            else:
                result = task_pb2.TaskResult()
                result.noop.result_path = f"{lease.result_prefix}{payload or 'result'}"
                await self.stub.Complete(worker_service_pb2.CompleteRequest(session_id=session, ref=ref, result=result))
                self.done.append(payload)
        except MeshError as error:
            if error.kind is not ErrorKind.CONFLICT:  # it was cancelled meanwhile
                raise
        return True


@dataclass
class Mesh:
    """A running workflows service, its tasks service and a worker."""

    running: workflows_composition.WorkflowsRuntime
    tasks: tasks_composition.TasksRuntime
    worker: Worker
    address: str
    channels: list[MeshChannel] = field(default_factory=list)

    def channel(self, tenant: str = "acme", scopes: Sequence[str] = ("read", "write")) -> MeshChannel:
        token = TokenIssuer(SECRET).issue(f"user-of-{tenant}", tenant, scopes, 600)
        channel = MeshChannel(self.address, lambda: token)
        self.channels.append(channel)
        return channel

    def workflows(self, tenant: str = "acme", scopes: Sequence[str] = ("read", "write")) -> Any:
        return self.channel(tenant, scopes).stub(WorkflowsServiceStub)

    def monitoring(self, tenant: str = "acme") -> Any:
        return self.channel(tenant).stub(WorkflowMonitoringServiceStub)

    async def get(self, workflow_id: str) -> workflow_pb2.WorkflowPublic:
        request = workflows_service_pb2.GetWorkflowRequest(workflow_id=workflow_id)
        found = (await self.workflows().GetWorkflow(request)).workflow
        assert isinstance(found, workflow_pb2.WorkflowPublic)
        return found

    async def until(
        self, workflow_id: str, condition: Callable[[workflow_pb2.WorkflowPublic], bool], seconds: float = 60.0
    ) -> workflow_pb2.WorkflowPublic:
        async with asyncio.timeout(seconds):
            while True:
                found = await self.get(workflow_id)
                if condition(found):
                    return found
                await asyncio.sleep(0.02)

    async def ended(self, workflow_id: str, seconds: float = 60.0) -> workflow_pb2.WorkflowPublic:
        return await self.until(workflow_id, lambda found: found.status in ENDED, seconds)

    async def task_count(self) -> int:
        async with self.tasks.database.connection() as conn:
            row = await (await conn.execute("SELECT count(*) FROM tasks")).fetchone()
        assert row is not None
        return int(row[0])


@dataclass
class Process:
    """The workflows service as a process that a test may kill."""

    environment: dict[str, str]
    port_file: Path
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> str:
        self.port_file.unlink(missing_ok=True)
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.workflows", env={**os.environ, **self.environment}
        )
        async with asyncio.timeout(60):
            while not self.port_file.exists():  # noqa: ASYNC110 -- what is waited for lies in another process
                await asyncio.sleep(0.05)
        return self.port_file.read_text().strip()

    async def kill(self) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


Settings = Callable[..., dict[str, Any]]
StartMesh = Callable[..., Awaitable[Mesh]]


@pytest.fixture
def shared(mesh_dsn: str, s3: S3Store) -> Settings:
    bucket = s3.bucket()

    def values(nats: str, **more: Any) -> dict[str, Any]:
        return {
            "listen": "127.0.0.1:0",
            "database_url": mesh_dsn,
            "nats_url": nats,
            "s3_endpoint": s3.endpoint,
            "s3_access_key": s3.access_key,
            "s3_secret_key": s3.secret_key,
            "s3_bucket": bucket,
            "auth_secret": SECRET,
            "shutdown_grace_seconds": 0.2,
            **more,
        }

    return values


@pytest.fixture
async def start_tasks(shared: Settings) -> AsyncIterator[Callable[[str], Awaitable[tuple[Any, Worker]]]]:
    """Starts a tasks service and its worker."""
    async with AsyncExitStack() as stack:

        async def begin(nats: str) -> tuple[tasks_composition.TasksRuntime, Worker]:
            settings = TasksSettings(**shared(nats, enable_noop=True, max_retries=0, lease_ttl_seconds=600))
            running = await tasks_composition.start(settings, stack)
            token = TokenIssuer(SECRET).issue("worker", "", ("worker",), 600)
            channel = await stack.enter_async_context(MeshChannel(running.address, lambda: token))
            worker = Worker(channel.stub(WorkerServiceStub))
            task = asyncio.create_task(worker.run())

            async def stop() -> None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

            stack.push_async_callback(stop)
            return running, worker

        yield begin


@pytest.fixture
async def mesh(shared: Settings, start_tasks: Any, nats_url: str) -> AsyncIterator[Mesh]:
    tasks, worker = await start_tasks(nats_url)
    async with AsyncExitStack() as stack:
        settings = WorkflowsSettings(
            **shared(
                nats_url,
                tasks_address=tasks.address,
                catalog_ttl_seconds=0,
                reconcile_interval_seconds=0.3,
                resend_seconds=0.5,
                check_seconds=1.0,
            )
        )
        running = await workflows_composition.start(settings, stack)
        mesh = Mesh(running, tasks, worker, running.address)
        yield mesh
        for channel in mesh.channels:
            await channel.close()
