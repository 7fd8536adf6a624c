"""What a server leaves to other tenants, and what it tells to strangers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from atelier.tasks.v1 import tasks_service_pb2 as tasks
from atelier.tasks.v1.tasks_service_pb2_grpc import TasksServiceStub
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from meshkit.auth import TokenIssuer
from meshkit.channel import MeshChannel
from meshkit.client import TasksClient
from meshkit.errors import ErrorKind, MeshError
from tests.integration.meshkit.serving import SECRET, SERVICE, Mesh, Task, failure

ID = "0197a0b0-0000-7000-8000-000000000001"


def watching(channel: MeshChannel) -> Any:
    return channel.stub(TasksServiceStub).WatchTask(tasks.WatchTaskRequest(task_id=ID))


async def reflected(mesh: Mesh, *metadata: tuple[str, str]) -> set[str]:
    async with grpc.aio.insecure_channel(mesh.server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        call = stub.ServerReflectionInfo(asked, metadata=metadata)
        response = await call.read()
        if response is grpc.aio.EOF:
            raise AssertionError(await call.code())
    return {service.name for service in response.list_services_response.service}


async def test_the_contracts_are_told_to_whoever_bears_a_token(mesh: Mesh) -> None:
    token = TokenIssuer(SECRET).issue("alice", "acme", ("read",), 60)
    assert SERVICE in await reflected(mesh, ("authorization", f"Bearer {token}"))
    for metadata in ([], [("authorization", "Bearer forged")]):
        async with grpc.aio.insecure_channel(mesh.server.address) as channel:
            # It sends nothing: a message that crosses the refusal would fail by itself, with another status.
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(metadata=metadata)
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_contracts_are_told_to_anyone_where_that_is_set() -> None:
    mesh = Mesh(reflection_open=True)
    await mesh.server.start()
    try:
        assert SERVICE in await reflected(mesh)
    finally:
        await mesh.server.stop(0)


async def test_a_tenant_that_watches_a_lot_leaves_places_to_others() -> None:
    mesh = Mesh(tenant_max_streams=3, tenant_max_calls=5)
    await mesh.server.start()
    gate = asyncio.Event()

    async def watch(_request: Any, _context: Any) -> AsyncIterator[tasks.WatchTaskResponse]:
        yield tasks.WatchTaskResponse()
        await gate.wait()

    mesh.servicer.behave = watch
    try:
        async with mesh.channel("read") as many, mesh.channel("read", tenant="other") as other:
            held = [watching(many) for _ in range(3)]
            for stream in held:
                await anext(stream)
            error = await failure(anext(watching(many)))
            assert (error.kind, error.reason) == (ErrorKind.EXHAUSTED, "TENANT_STREAMS")
            assert dict(error.metadata) == {"limit": "streams", "most": "3", "retry_after": "2"}
            theirs = watching(other)
            await anext(theirs)
            mesh.servicer.behave = lambda request, _context: tasks.GetTaskResponse(task=Task(id=request.task_id))
            await TasksClient(many).get(ID)  # streams leave calls to their tenant
            held.pop().cancel()
            theirs.cancel()

            async def again() -> bool:
                mesh.servicer.behave = watch
                try:
                    await anext(watching(many))
                except MeshError:
                    return False
                return True

            async with asyncio.timeout(60):
                while not await again():  # noqa: ASYNC110 -- the server has no event for it
                    await asyncio.sleep(0.02)
    finally:
        gate.set()
        await mesh.server.stop(0)
