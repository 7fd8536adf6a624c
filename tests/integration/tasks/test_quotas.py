"""Limits of tenants: one that has reached its own is told so, another creates as before."""

import asyncio
from typing import Any

import pytest
from atelier.tasks.v1 import tasks_service_pb2

from meshkit.errors import ErrorKind, MeshError
from services.tasks.api import quotas
from tests.integration.tasks.conftest import Mesh, StartMesh, noop


async def limits(mesh: Mesh, tenant: str = "acme") -> dict[str, Any]:
    answer = await mesh.tasks(tenant).GetLimits(tasks_service_pb2.GetLimitsRequest())
    assert answer.tenant == tenant
    return {limit.name: (limit.most, limit.used if limit.HasField("used") else None) for limit in answer.limits}


async def refused(mesh: Mesh, tenant: str = "acme") -> MeshError:
    with pytest.raises(MeshError) as caught:
        await mesh.create(tenant=tenant)
    return caught.value


async def test_a_tenant_with_too_many_waiting_tasks_is_told_so_and_another_creates(
    start_mesh: StartMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "_FRESH_SECONDS", 0.0)
    mesh = await start_mesh(tenant_waiting_tasks=3)
    for _ in range(3):
        await mesh.create()
    error = await refused(mesh)
    assert (error.kind, error.reason) == (ErrorKind.EXHAUSTED, "TENANT_WAITING_TASKS")
    assert dict(error.metadata) == {"limit": "waiting_tasks", "most": "3", "retry_after": "5"}
    assert "ATELIER_TENANT_WAITING_TASKS" in error.message
    await mesh.create(tenant="other")
    assert ((await limits(mesh))["waiting_tasks"], (await limits(mesh, "other"))["waiting_tasks"]) == ((3, 3), (3, 1))
    worker = await mesh.worker()
    leases = await worker.lease(4)
    assert len(leases) == 4
    await mesh.create()


async def test_creates_between_two_looks_at_the_database_are_counted(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(tenant_waiting_tasks=5)
    stub = mesh.tasks()
    answers = await asyncio.gather(*(mesh.create(stub=stub) for _ in range(30)), return_exceptions=True)
    made = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert 5 <= len(made) <= 6, "one more where the database was asked in between"


async def test_a_repeated_create_is_answered_although_the_limit_is_reached(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(tenant_waiting_tasks=1)
    stub = mesh.tasks()
    request = tasks_service_pb2.CreateTaskRequest(task=noop())
    key = (("idempotency-key", "once"),)
    first = await stub.CreateTask(request, metadata=key)
    await refused(mesh)
    assert (await stub.CreateTask(request, metadata=key)).task.id == first.task.id


async def test_a_tenant_that_stores_too_much_is_told_so_and_another_creates(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(tenant_storage_bytes=1000)
    await mesh.running.objects.put("hoarder", "uploads/a.bin", bytes(1001), "application/octet-stream")
    assert (await limits(mesh, "hoarder"))["storage_bytes"] == (1000, 1001)
    error = await refused(mesh, "hoarder")
    assert (error.reason, error.metadata["limit"]) == ("TENANT_STORAGE_BYTES", "storage_bytes")
    await mesh.create(tenant="other")


async def test_limits_name_what_each_process_counts_for_itself(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(tenant_max_streams=7, tenant_max_calls=8, tenant_requests_per_second=9)
    answer = await mesh.tasks().GetLimits(tasks_service_pb2.GetLimitsRequest())
    assert {limit.name: limit.most for limit in answer.limits if limit.per_process} == {
        "streams": 7,
        "calls": 8,
        "requests_per_second": 9,
    }


async def test_a_token_without_a_tenant_has_no_limits_to_be_told(start_mesh: StartMesh) -> None:
    mesh = await start_mesh()
    with pytest.raises(MeshError) as caught:
        await mesh.tasks("", ("operator",)).GetLimits(tasks_service_pb2.GetLimitsRequest())
    assert caught.value.kind is ErrorKind.FORBIDDEN
