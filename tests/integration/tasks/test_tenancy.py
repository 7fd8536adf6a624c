"""Generated over the descriptors: no RPC shows or changes another tenant's task."""

from typing import Any

import grpc
import pytest
from atelier.options.v1 import options_pb2
from atelier.tasks.v1 import enums_pb2, tasks_service_pb2, worker_service_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from meshkit.errors import ErrorKind, MeshError
from tests.integration.tasks.conftest import Mesh, noop

TASKS = tasks_service_pb2.DESCRIPTOR.services_by_name["TasksService"]
WORKERS = worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"]
OF_A_TASK = [method for method in TASKS.methods if "task_id" in method.input_type.fields_by_name]
LISTS = [method for method in TASKS.methods if "tasks" in method.output_type.fields_by_name]
EVERY = [*TASKS.methods, *WORKERS.methods]


def named(methods: list[MethodDescriptor]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("method", methods, ids=lambda method: method.name)


def request_of(method: MethodDescriptor, task_id: str) -> Any:
    request: Any = message_factory.GetMessageClass(method.input_type)()
    if "task_id" in method.input_type.fields_by_name:
        request.task_id = task_id
    if "update" in method.input_type.fields_by_name:
        request.update.priority = 9
    return request


async def call(stub: Any, method: MethodDescriptor, request: Any) -> Any:
    if method.server_streaming:
        return [response async for response in getattr(stub, method.name)(request)]
    return await getattr(stub, method.name)(request)


def scope_of(method: MethodDescriptor) -> int:
    return int(method.GetOptions().Extensions[options_pb2.method].scope)


@named([method for method in OF_A_TASK if method.name != "CreateTask"])
async def test_task_of_another_tenant_is_not_found(mesh: Mesh, method: MethodDescriptor) -> None:
    task = await mesh.create(tenant="acme")
    with pytest.raises(MeshError) as error:
        await call(mesh.tasks("globex", ("admin",)), method, request_of(method, task.id))
    for_support = scope_of(method) == options_pb2.SCOPE_SUPPORT
    assert error.value.kind is (ErrorKind.FORBIDDEN if for_support else ErrorKind.NOT_FOUND)
    assert (await mesh.get(task.id)).version == 1


@named(LISTS)
async def test_lists_show_the_own_tenant_only(mesh: Mesh, method: MethodDescriptor) -> None:
    await mesh.create(tenant="acme")
    request = request_of(method, "")
    assert list((await call(mesh.tasks("globex"), method, request)).tasks) == []
    request.origin_tenant_id = "acme"
    assert list((await call(mesh.tasks("globex"), method, request)).tasks) == []


@named(EVERY)
async def test_every_method_asks_for_a_token_and_its_scope(mesh: Mesh, method: MethodDescriptor) -> None:
    assert scope_of(method), "a method without a scope would be open to every caller"
    path = f"/{method.containing_service.full_name}/{method.name}"
    async with grpc.aio.insecure_channel(mesh.running.address) as channel:
        for token, code in (
            (None, grpc.StatusCode.UNAUTHENTICATED),
            ("nonsense", grpc.StatusCode.UNAUTHENTICATED),
            (mesh.token("acme", ()), grpc.StatusCode.PERMISSION_DENIED),
            (mesh.issuer.issue("late", "acme", ("mesh",), -120), grpc.StatusCode.UNAUTHENTICATED),
        ):
            metadata = (("authorization", f"Bearer {token}"),) if token else ()
            kind: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
            rpc = kind(path, request_serializer=lambda _: b"", response_deserializer=bytes)(b"", metadata=metadata)
            answer = rpc.read() if method.server_streaming else rpc
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await answer
            assert error.value.code() is code


async def test_support_reads_across_and_changes_nothing(mesh: Mesh) -> None:
    task = await mesh.create(tenant="acme")
    support = mesh.tasks("staff", ("support", "write"))
    assert (await support.GetTask(tasks_service_pb2.GetTaskRequest(task_id=task.id))).task.id == task.id
    assert len((await support.ListTasks(tasks_service_pb2.ListTasksRequest())).tasks) == 1
    with pytest.raises(MeshError) as error:
        await support.CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=task.id))
    assert error.value.kind is ErrorKind.NOT_FOUND


async def test_operator_works_across_tenants(mesh: Mesh) -> None:
    task = await mesh.create(tenant="acme")
    operator = mesh.tasks("ops", ("operator",))
    cancelled = await operator.CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=task.id))
    assert cancelled.task.status == enums_pb2.TASK_STATUS_CANCELLED


async def test_leases_of_all_tenants_name_their_own(mesh: Mesh) -> None:
    for tenant in ("acme", "globex"):
        await mesh.create(noop(), tenant=tenant)
    worker = await mesh.worker()
    leases = await worker.lease(2)
    assert {lease.tenant for lease in leases} == {"acme", "globex"}
    assert all(lease.task.origin_tenant_id == lease.tenant for lease in leases)
