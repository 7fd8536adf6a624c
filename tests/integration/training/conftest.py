"""The training service with the tasks service behind it and the gateway before it, as production composes them."""

import base64
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import pytest
from atelier.tasks.v1 import enums_pb2, task_pb2, worker_service_pb2
from atelier.tasks.v1.worker_service_pb2_grpc import WorkerServiceStub
from atelier.training.v1 import trainer_service_pb2, training_pb2
from atelier.training.v1.trainer_service_pb2_grpc import TrainerServiceStub
from atelier.training.v1.training_service_pb2_grpc import TrainingServiceStub
from google.protobuf.duration_pb2 import Duration
from PIL import Image

from meshkit.auth import TokenIssuer
from meshkit.channel import MeshChannel
from services.gateway import composition as gateway
from services.gateway.config import GatewaySettings
from services.tasks import composition as tasks
from services.tasks.config import TasksSettings
from services.training import composition as training
from services.training.composition import TrainingRuntime
from services.training.config import TrainingSettings
from services.workflows import composition as graphs
from services.workflows.config import WorkflowsSettings
from tests.conftest import S3Store
from tests.loras.layouts import write

SECRET = "tests-only-tests-only-tests-only-tests-only"
PATH = "/api/v1/training/"
SHA = "0" * 64
_LAYER = "transformer.transformer_blocks.0.attn.to_q"
LORA = write({f"{_LAYER}.lora_A.weight": (1, 192), f"{_LAYER}.lora_B.weight": (192, 1)})
"""A LoRA of the shipped model, of one layer."""


def picture(color: str = "red", size: tuple[int, int] = (32, 32)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "PNG")
    return out.getvalue()


def data_url(color: str = "red") -> str:
    return "data:image/png;base64," + base64.b64encode(picture(color)).decode()


@dataclass
class Trainer:
    """A trainer as the wire sees it: it takes leases, and tells what it does by hand."""

    workers: Any
    reports: Any
    session: str
    sequence: int = 0

    async def lease(self, wait: float = 20.0) -> worker_service_pb2.Lease:
        self.sequence += 1
        duration = Duration()
        duration.FromMilliseconds(int(wait * 1000))
        request = worker_service_pb2.LeaseRequest(
            session_id=self.session, sequence=self.sequence, max_leases=1, wait=duration
        )
        [lease] = (await self.workers.Lease(request)).leases
        return lease  # type: ignore[no-any-return]  # stubs are untyped here

    async def complete(self, ref: worker_service_pb2.AttemptRef) -> None:
        await self.workers.Complete(
            worker_service_pb2.CompleteRequest(
                session_id=self.session, ref=ref, result=task_pb2.TaskResult(), device_seconds=1.0
            )
        )

    async def fail(self, ref: worker_service_pb2.AttemptRef, message: str, *, retryable: bool = False) -> None:
        await self.workers.Fail(
            worker_service_pb2.FailRequest(
                session_id=self.session,
                ref=ref,
                message=message,
                category=enums_pb2.ERROR_CATEGORY_RESOURCE,
                retryable=retryable,
            )
        )

    async def begin(self) -> tuple[worker_service_pb2.AttemptRef, trainer_service_pb2.TrainingSpec]:
        """Take the next training and begin with it."""
        lease = await self.lease()
        ref = worker_service_pb2.AttemptRef(job_id=lease.job_id, attempt=lease.attempt)
        spec = (await self.reports.BeginAttempt(trainer_service_pb2.BeginAttemptRequest(ref=ref))).spec
        return ref, spec

    async def prepare(self, ref: worker_service_pb2.AttemptRef, spec: trainer_service_pb2.TrainingSpec) -> None:
        """Tell of a dataset of one image."""
        folder = f"{spec.folder}dataset/{ref.attempt}/"
        await self.reports.NoteDataset(
            trainer_service_pb2.NoteDatasetRequest(
                ref=ref,
                manifest_path=f"{folder}dataset.json",
                images=[
                    training_pb2.DatasetImage(
                        name="a.png",
                        path=f"{folder}a.png",
                        thumbnail_path=f"{folder}a-small.png",
                        caption="zorblat",
                        width=64,
                        height=64,
                    )
                ],
                rejects=[training_pb2.RejectedImage(name="b.png", reason="is too small")],
            )
        )

    async def steps(self, ref: worker_service_pb2.AttemptRef, step: int, **more: Any) -> list[str]:
        request = trainer_service_pb2.ReportStepsRequest(ref=ref, step=step, **more)
        return list((await self.reports.ReportSteps(request)).sample_prompts)

    async def finish(self, ref: worker_service_pb2.AttemptRef, spec: trainer_service_pb2.TrainingSpec) -> str:
        request = trainer_service_pb2.FinishTrainingRequest(
            ref=ref,
            adapter=trainer_service_pb2.FinishedAdapter(
                path=f"{spec.folder}saves/last.safetensors", size=3, sha256=SHA
            ),
        )
        return str((await self.reports.FinishTraining(request)).library_path)


@dataclass
class Mesh:
    """Running services and who talks to them."""

    training: TrainingRuntime
    tasks: tasks.TasksRuntime
    gateway: str
    bucket: str
    stack: AsyncExitStack
    issuer: TokenIssuer = field(default_factory=lambda: TokenIssuer(SECRET))

    def token(self, tenant: str = "acme", scopes: tuple[str, ...] = ("read", "write"), **more: Any) -> str:
        return self.issuer.issue(more.pop("subject", f"user-of-{tenant}"), tenant, scopes, 600, **more)

    def stub(self, address: str, token: str, kind: Any) -> Any:
        channel = MeshChannel(address, lambda: token)
        self.stack.push_async_callback(channel.close)
        return channel.stub(kind)

    def trainings(self, tenant: str = "acme", scopes: tuple[str, ...] = ("read", "write")) -> Any:
        return self.stub(self.training.address, self.token(tenant, scopes), TrainingServiceStub)

    def http(self, tenant: str = "acme", scopes: tuple[str, ...] = ("read", "write")) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self.token(tenant, scopes)}"}
        client = httpx.AsyncClient(base_url=self.gateway, headers=headers, timeout=60)
        self.stack.push_async_callback(client.aclose)
        return client

    async def create(self, **members: Any) -> dict[str, Any]:
        body = {"trigger_word": "zorblat", "source_images": [data_url()], "steps": 10} | members
        answer = await self.http().post(PATH, json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def get(self, training_id: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.http().get(PATH + training_id)).json()
        return found

    async def trainer(self, name: str = "t/0") -> Trainer:
        token = self.token("", ("worker",), subject="trainer", queues=("training",))
        workers = self.stub(self.tasks.address, token, WorkerServiceStub)
        pair = worker_service_pb2.ServedPair(job_kind=worker_service_pb2.JOB_KIND_TRAINING)
        request = worker_service_pb2.OpenSessionRequest(
            name=name, kind="trainer", queues=["training"], slots=1, pairs=[pair]
        )
        session = (await workers.OpenSession(request)).session_id
        return Trainer(workers, self.stub(self.training.address, token, TrainerServiceStub), session)

    async def trained(self, **members: Any) -> tuple[dict[str, Any], str]:
        """A training that has completed, and the path of its adapter in the library."""
        created = await self.create(**members)
        trainer = await self.trainer()
        ref, spec = await trainer.begin()
        await trainer.prepare(ref, spec)
        await trainer.steps(ref, spec.total_steps)
        await self.put(f"{spec.folder}saves/last.safetensors", LORA)
        path = await trainer.finish(ref, spec)
        await trainer.complete(ref)
        await self.training.maintenance.reconcile()
        return await self.get(created["id"]), path

    async def put(self, path: str, data: bytes, tenant: str = "acme") -> None:
        await self.training.objects.put(tenant, path, data, "application/octet-stream")

    async def objects(self, prefix: str = "", tenant: str = "acme") -> list[str]:
        return [info.path async for info in self.training.objects.walk(tenant, prefix)]

    async def rows(self, query: str, *values: Any) -> list[Any]:
        async with self.training.database.connection() as conn:
            cursor = await conn.execute(query, values)
            return await cursor.fetchall()

    async def execute(self, query: str, *values: Any) -> None:
        async with self.training.database.transaction() as conn:
            await conn.execute(query, values)

    async def execute_tasks(self, query: str, *values: Any) -> None:
        async with self.tasks.database.transaction() as conn:
            await conn.execute(query, values)


StartMesh = Callable[..., Awaitable[Mesh]]


@pytest.fixture
async def start_mesh(mesh_dsn: str, nats_url: str, s3: S3Store) -> AsyncIterator[StartMesh]:
    """Starts the three services; loops run only where asked for."""
    async with AsyncExitStack() as outer:

        async def begin(
            *, workflows: bool = False, gateway_settings: dict[str, Any] | None = None, **settings: Any
        ) -> Mesh:
            shared: dict[str, Any] = {
                "listen": "127.0.0.1:0",
                "database_url": mesh_dsn,
                "nats_url": nats_url,
                "s3_endpoint": s3.endpoint,
                "s3_access_key": s3.access_key,
                "s3_secret_key": s3.secret_key,
                "s3_bucket": s3.bucket(),
                "auth_secret": SECRET,
                "media_secret": SECRET,
                "public_url": "http://gateway.test",
                "shutdown_grace_seconds": 0.2,
                "run_loops": False,
            }
            stack = await outer.enter_async_context(AsyncExitStack())
            behind = await tasks.start(TasksSettings(**shared, retry_base_seconds=0.0, lease_ttl_seconds=600), stack)
            running = await training.start(
                TrainingSettings(**(shared | {"tasks_address": behind.address} | settings)), stack
            )
            addresses = {"tasks": behind.address, "training": running.address}
            if workflows:
                beside = WorkflowsSettings(
                    **(shared | {"run_loops": True, "tasks_address": behind.address}),
                    training_address=running.address,
                    check_seconds=3600.0,  # ends are told by events alone
                )
                addresses["workflows"] = (await graphs.start(beside, stack)).address
            del shared["run_loops"], shared["database_url"], shared["nats_url"]
            front = await gateway.start(
                GatewaySettings(**shared, **(gateway_settings or {}), addresses=addresses), stack
            )
            return Mesh(running, behind, f"http://{front.address}", shared["s3_bucket"], stack)

        yield begin


@pytest.fixture
async def mesh(start_mesh: StartMesh) -> Mesh:
    return await start_mesh()


def unknown() -> str:
    return str(uuid4())
