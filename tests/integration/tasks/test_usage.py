"""What tenants have used: sums of attempts, of calls and of storage, compared with what was done."""

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from atelier.tasks.v1 import enums_pb2, service_requests_pb2, tasks_service_pb2, worker_service_pb2
from atelier.tasks.v1 import usage_service_pb2 as pb
from atelier.tasks.v1.usage_service_pb2_grpc import UsageServiceStub
from google.protobuf.timestamp_pb2 import Timestamp

from meshkit.errors import ErrorKind, MeshError
from services.tasks.postgres.usage_days import PostgresUsage
from services.tasks.usage.service import StorageMeasure
from tests.integration.tasks.conftest import Mesh, StartMesh, Worker, noop, ref

FAL = enums_pb2.PROVIDER_TYPE_FAL_STANDARD
DONE = service_requests_pb2.SERVICE_REQUEST_STATE_DONE
FAILED = service_requests_pb2.SERVICE_REQUEST_STATE_FAILED


def usage_of(mesh: Mesh, tenant: str = "acme", scopes: tuple[str, ...] = ("read",)) -> Any:
    return mesh.channel(mesh.token(tenant, scopes)).stub(UsageServiceStub)


async def used(mesh: Mesh, *by: str, tenant: str = "acme", **which: Any) -> pb.GetUsageResponse:
    """What was used, which is the same before and after the notes are added up."""
    scopes = which.pop("scopes", ("read",))
    stub = usage_of(mesh, tenant, scopes)
    before = await stub.GetUsage(pb.GetUsageRequest(group_by=by, **which))
    await PostgresUsage(mesh.running.database).fold()
    after = await stub.GetUsage(pb.GetUsageRequest(group_by=by, **which))
    assert before == after
    assert isinstance(after, pb.GetUsageResponse)
    return after


async def complete(worker: Worker, lease: worker_service_pb2.Lease, seconds: float, device: str, model: str) -> None:
    await worker.stub.Complete(
        worker_service_pb2.CompleteRequest(
            session_id=worker.session, ref=ref(lease), device_seconds=seconds, device=device, model=model
        )
    )


async def fail(worker: Worker, lease: worker_service_pb2.Lease, seconds: float, *, retryable: bool = True) -> None:
    await worker.stub.Fail(
        worker_service_pb2.FailRequest(
            session_id=worker.session,
            ref=ref(lease),
            message="broken",
            category=enums_pb2.ERROR_CATEGORY_PROVIDER,
            retryable=retryable,
            device_seconds=seconds,
            device="cuda:1",
            model="large",
        )
    )


async def note(worker: Worker, lease: worker_service_pb2.Lease, state: Any, *, seconds: int, **members: Any) -> None:
    ended = datetime.now(UTC)
    request = service_requests_pb2.ServiceRequest(
        id=str(uuid4()),
        provider_type=FAL,
        target="fal-ai/writer",
        operation="submit",
        state=state,
        sent_at=stamp(ended - timedelta(seconds=seconds)),
        ended_at=stamp(ended),
        **members,
    )
    await worker.stub.NoteServiceRequest(
        worker_service_pb2.NoteServiceRequestRequest(session_id=worker.session, ref=ref(lease), request=request)
    )


def stamp(moment: datetime) -> Timestamp:
    value = Timestamp()
    value.FromDatetime(moment)
    return value


async def test_sums_are_right_after_retries_failures_cancels_and_losses(mesh: Mesh) -> None:
    worker = await mesh.worker()
    for _ in range(5):
        await mesh.create()
    completed, retried, failed, cancelled, lost = await worker.lease(5)
    await complete(worker, completed, 2.0, "cuda:0", "large")
    await fail(worker, retried, 1.0)
    await fail(worker, failed, 4.0, retryable=False)
    await mesh.tasks().CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=cancelled.job_id))
    before = await used(mesh, "day")
    assert (before.total.attempts, before.total.failed_attempts, before.total.device_seconds) == (4, 2, 7.0)

    with pytest.raises(MeshError):  # what it had used it tells all the same, and once
        await fail(worker, cancelled, 8.0)
    with pytest.raises(MeshError):
        await fail(worker, cancelled, 8.0)
    await worker.heartbeat(lost)
    await mesh.execute("UPDATE sessions SET expires_at = now() - interval '1 second'")
    await mesh.running.maintenance.expire()
    after = await used(mesh, "day")
    assert (after.total.attempts, after.total.failed_attempts, after.total.device_seconds) == (5, 3, 15.0)
    assert (after.total.gpu_seconds, after.total.cpu_seconds) == (15.0, 0.0)
    assert after.total.run_seconds > 0
    [row] = after.rows
    assert (row.day, row.attempts, row.HasField("tenant")) == (datetime.now(UTC).date().isoformat(), 5, False)


async def test_an_attempt_that_was_handed_back_is_none(mesh: Mesh) -> None:
    worker = await mesh.worker()
    await mesh.create()
    [lease] = await worker.lease()
    await worker.release(lease)
    assert (await used(mesh)).total.attempts == 0
    [lease] = await worker.lease()
    await complete(worker, lease, 1.5, "cpu", "small")
    found = await used(mesh, "model", "device", "task_type", "provider_type")
    [row] = found.rows
    assert (row.model, row.device, row.task_type, row.provider_type) == ("small", "cpu", "NOOP", "LOCAL")
    assert (row.attempts, row.cpu_seconds, row.gpu_seconds) == (1, 1.5, 0.0)
    assert list(found.group_by) == ["model", "device", "task_type", "provider_type"]


async def test_usage_outlives_its_task(mesh: Mesh) -> None:
    worker = await mesh.worker()
    task = await mesh.create()
    [lease] = await worker.lease()
    await complete(worker, lease, 1.0, "cpu", "")
    await mesh.tasks().DeleteTask(tasks_service_pb2.DeleteTaskRequest(task_id=task.id))
    assert (await used(mesh)).total.device_seconds == 1.0


async def test_calls_of_providers_are_counted_with_their_cost_by_model(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(served_providers=("LOCAL", "FAL_STANDARD"))
    worker = await mesh.worker()
    await mesh.create()
    [lease] = await worker.lease()
    await note(worker, lease, DONE, seconds=20, cost=0.25, currency="USD")
    await note(worker, lease, DONE, seconds=10, cost=2.0, currency="EUR")
    await note(worker, lease, FAILED, seconds=5)
    found = await used(mesh, "provider_type", "model")
    [row] = found.rows
    assert (row.provider_type, row.model) == ("FAL_STANDARD", "fal-ai/writer")
    assert (row.provider_calls, row.failed_provider_calls) == (3, 1)
    assert row.provider_seconds == pytest.approx(35.0)
    assert dict(row.costs) == {"USD": 0.25, "EUR": 2.0}
    assert dict(found.total.costs) == dict(row.costs)
    assert not (await used(mesh, model="another")).rows


async def test_a_tenant_sees_its_own_and_support_sees_all(mesh: Mesh) -> None:
    worker = await mesh.worker()
    for tenant, seconds in (("acme", 1.0), ("other", 2.0)):
        await mesh.create(tenant=tenant)
        [lease] = await worker.lease()
        await complete(worker, lease, seconds, "cpu", "")
    own = await used(mesh, "tenant")
    assert [(row.tenant, row.device_seconds) for row in own.rows] == [("acme", 1.0)]
    with pytest.raises(MeshError) as refused:
        await usage_of(mesh).GetUsage(pb.GetUsageRequest(origin_tenant_id="other"))
    assert refused.value.kind is ErrorKind.FORBIDDEN
    for scope in ("support", "operator"):
        everyone = await used(mesh, "tenant", tenant="ops", scopes=("read", scope))
        assert [(row.tenant, row.device_seconds) for row in everyone.rows] == [("acme", 1.0), ("other", 2.0)]
        chosen = await used(mesh, "tenant", tenant="ops", scopes=("read", scope), origin_tenant_id="other")
        assert chosen.total.device_seconds == 2.0


async def test_days_outside_of_the_range_do_not_count(mesh: Mesh) -> None:
    worker = await mesh.worker()
    for _ in range(2):
        await mesh.create()
    first, second = await worker.lease(2)
    await complete(worker, first, 1.0, "cpu", "")
    await PostgresUsage(mesh.running.database).fold()
    await mesh.execute("UPDATE usage_days SET day = '2026-01-31'")
    await complete(worker, second, 2.0, "cpu", "")
    assert (await used(mesh)).total.device_seconds == 2.0
    january = await used(mesh, first_day="2026-01-01", last_day="2026-01-31")
    assert [(row.day, row.device_seconds) for row in january.rows] == [("2026-01-31", 1.0)]
    assert (january.first_day, january.last_day) == ("2026-01-01", "2026-01-31")


@pytest.mark.parametrize(
    ("which", "member"),
    [
        ({"first_day": "2026-02-02", "last_day": "2026-02-01"}, "first_day"),
        ({"first_day": "2020-01-01", "last_day": "2026-02-01"}, "first_day"),
        ({"last_day": "2026-02-30"}, "last_day"),
        ({"group_by": ["colour"]}, "group_by[0]"),
    ],
)
async def test_what_is_no_range_of_days_is_refused(mesh: Mesh, which: dict[str, Any], member: str) -> None:
    with pytest.raises(MeshError) as refused:
        await usage_of(mesh).GetUsage(pb.GetUsageRequest(**which))
    assert refused.value.kind is ErrorKind.INVALID
    assert [one.path for one in refused.value.violations] == [member]


async def test_a_table_has_a_line_for_each_row_and_no_formula(mesh: Mesh) -> None:
    worker = await mesh.worker()
    await mesh.create()
    [lease] = await worker.lease()
    await complete(worker, lease, 1.25, "cpu", "=1+1")
    answer = await usage_of(mesh).ExportUsage(pb.ExportUsageRequest(group_by=["model", "tenant"]))
    assert answer.table.content_type == "text/csv; charset=utf-8"
    [line] = csv.DictReader(io.StringIO(answer.table.data.decode()))
    assert (line["tenant"], line["model"], line["attempts"], line["device_seconds"]) == ("acme", "'=1+1", "1", "1.250")


async def test_what_is_stored_is_measured_by_type_and_model(mesh: Mesh) -> None:
    tenant = f"t{uuid4().hex}"
    worker = await mesh.worker()
    task = await mesh.create(noop(), tenant=tenant)
    [lease] = await worker.lease()
    objects = mesh.running.objects
    await objects.put(tenant, f"{lease.result_prefix}a.png", b"x" * 100, "image/png")
    await objects.put(tenant, "loras/style.safetensors", b"y" * 30, "application/octet-stream")
    await complete(worker, lease, 1.0, "cpu", "small")
    store = PostgresUsage(mesh.running.database)
    folder = lease.result_prefix.partition("/")[0]
    measure = StorageMeasure(store, objects, {folder: "NOOP"})
    while await measure.measure():
        pass
    found = await used(mesh, "task_type", "model", tenant=tenant)
    stored = {(row.task_type, row.model): (row.stored_bytes, row.stored_objects) for row in found.rows}
    assert stored == {("NOOP", "small"): (100, 1), ("loras", ""): (30, 1)}
    assert (found.total.stored_bytes, found.total.stored_objects) == (130, 2)

    # A day's figure is the last one of the day, and a day's sum is no sum over days.
    await mesh.execute("UPDATE stored_days SET day = day - 1 WHERE tenant = %s", tenant)
    await objects.delete_prefix(tenant, "loras/")
    await mesh.execute("UPDATE stored_measures SET measured_at = measured_at - interval '2 days'")
    while await measure.measure():
        pass
    found = await used(mesh, "day", tenant=tenant)
    assert [row.stored_bytes for row in found.rows] == [130, 100]
    assert found.total.stored_bytes == 100
    assert not await measure.measure()  # measured a moment ago
    assert task.id in lease.result_prefix
