"""Server, channel and typed clients together, over real sockets."""

import asyncio
import errno
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.tasks.v1 import enums_pb2, task_pb2
from atelier.tasks.v1 import tasks_service_pb2 as tasks
from atelier.tasks.v1.generation_pb2 import CreateGenerationTask
from atelier.tasks.v1.tasks_service_pb2_grpc import (
    TasksServiceStub,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshkit import auth, errors, idempotency, tracing
from meshkit.auth import ServiceTokens, TokenIssuer
from meshkit.channel import MeshChannel, call_metadata
from meshkit.client import TasksClient
from meshkit.errors import ErrorKind, MeshError
from tests.integration.meshkit.serving import SECRET, SERVICE, Mesh, failure

CLIENT_GUIDE = Path(__file__).parents[3] / "docs" / "client.md"
Task = task_pb2.Task
ID = "00000000-0000-4000-8000-000000000000"
Behaviour = Callable[..., Awaitable[Any]]


def get(channel: MeshChannel, **options: Any) -> Awaitable[tasks.GetTaskResponse]:
    return channel.stub(TasksServiceStub).GetTask(tasks.GetTaskRequest(task_id=ID), **options)


async def test_a_call_passes_with_its_caller_trace_tenant_and_key(mesh: Mesh) -> None:
    seen: dict[str, Any] = {}

    def behave(_request: Any, _context: Any) -> tasks.GetTaskResponse:
        trace = tracing.current()
        seen.update(who=auth.current().subject, tenant=auth.acting_tenant(), trace=trace, key=idempotency.current_key())
        return tasks.GetTaskResponse()

    mesh.servicer.behave = behave
    async with mesh.channel("read") as channel:
        with tracing.activated(tracing.begin(f"00-{'a' * 32}-{'b' * 16}-01", "order-7")):
            await get(channel, metadata=call_metadata(idempotency_key="k"))
    assert (seen["who"], seen["tenant"], seen["key"]) == ("alice", "acme", "k")
    assert (seen["trace"].trace_id, seen["trace"].request_id, seen["trace"].tenant) == ("a" * 32, "order-7", "acme")


async def test_without_a_token_nothing_is_called(mesh: Mesh) -> None:
    async with MeshChannel(mesh.server.address) as channel:
        assert (await failure(get(channel))).reason == "TOKEN_MISSING"
        basic = (("authorization", "Basic YTpi"),)
        assert (await failure(get(channel, metadata=basic))).reason == "TOKEN_INVALID"
        assert (await failure(get(channel, metadata=call_metadata(token="x")))).kind is ErrorKind.UNAUTHENTICATED
    assert mesh.servicer.calls == []


async def test_the_scope_of_the_method_is_asked_for(mesh: Mesh) -> None:
    async with mesh.channel("read") as channel:
        error = await failure(TasksClient(channel).cancel(ID))
        assert (error.kind, error.reason, dict(error.metadata)) == (
            ErrorKind.FORBIDDEN,
            "SCOPE_MISSING",
            {"scope": "write"},
        )
    async with mesh.channel("write") as channel:
        assert (await failure(get(channel))).metadata["scope"] == "read", "writing is not reading"
    assert mesh.servicer.calls == []


@pytest.fixture
async def narrow() -> AsyncIterator[Mesh]:
    """A server that serves four calls at once."""
    mesh = Mesh(max_concurrent_calls=4)
    await mesh.server.start()
    yield mesh
    await mesh.server.stop(0)


async def test_more_calls_than_a_server_serves_at_once_are_refused_until_one_ends(narrow: Mesh) -> None:
    gate, arrived = asyncio.Event(), asyncio.Semaphore(0)

    async def wait(_request: Any, _context: Any) -> tasks.GetTaskResponse:
        arrived.release()
        await gate.wait()
        return tasks.GetTaskResponse()

    narrow.servicer.behave = wait
    async with narrow.channel("read") as channel, grpc.aio.insecure_channel(narrow.server.address) as plain:
        waiting = [asyncio.ensure_future(get(channel)) for _ in range(4)]
        for _ in waiting:
            await arrived.acquire()
        for _ in range(6):
            error = await failure(get(channel))
            assert (error.kind, error.reason) == (ErrorKind.EXHAUSTED, "TOO_MANY_CALLS")
        # The many are refused by gRPC itself, in other words.
        refused = await asyncio.gather(*(failure(get(channel)) for _ in range(300)))
        assert {(error.kind, error.message) for error in refused} == {(ErrorKind.EXHAUSTED, error.message)}
        health = await health_pb2_grpc.HealthStub(plain).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING, "a busy service is not a dead one"
        assert len(narrow.servicer.calls) == 4
        gate.set()
        await asyncio.gather(*waiting)
        for _ in range(6):
            await get(channel)


async def test_followers_leave_room_for_other_calls(narrow: Mesh) -> None:
    async def follow(_request: Any, _context: Any) -> AsyncIterator[tasks.WatchTaskResponse]:
        yield tasks.WatchTaskResponse()
        await asyncio.Event().wait()

    plain = narrow.servicer.behave
    narrow.servicer.behave = follow
    async with narrow.channel("read") as channel:
        stub = channel.stub(TasksServiceStub)
        streams = [stub.WatchTask(tasks.WatchTaskRequest(task_id=ID)) for _ in range(2)]
        for stream in streams:
            await anext(aiter(stream))
        for _ in range(3):
            error = await failure(anext(aiter(stub.WatchTask(tasks.WatchTaskRequest(task_id=ID)))))
            assert (error.kind, error.reason) == (ErrorKind.EXHAUSTED, "TOO_MANY_CALLS")
        narrow.servicer.behave = plain
        assert (await get(channel)).task.id == ID
        narrow.servicer.behave = follow
        streams[0].cancel()
        async with asyncio.timeout(60):
            await narrow.servicer.cancelled.wait()
            while True:
                try:
                    await anext(aiter(stub.WatchTask(tasks.WatchTaskRequest(task_id=ID))))
                    break
                except MeshError:
                    await asyncio.sleep(0.01)


async def test_streams_are_guarded_too(mesh: Mesh) -> None:
    async with mesh.channel("worker") as channel:
        stream = channel.stub(TasksServiceStub).WatchTask(tasks.WatchTaskRequest(task_id=ID))
        assert (await failure(anext(aiter(stream)))).reason == "SCOPE_MISSING"
    async with mesh.channel("read") as channel:
        stream = channel.stub(TasksServiceStub).WatchTask(tasks.WatchTaskRequest(task_id="x"))
        assert (await failure(anext(aiter(stream)))).kind is ErrorKind.INVALID
    assert mesh.servicer.calls == []


async def test_a_service_acts_for_a_tenant_and_nobody_else_does(mesh: Mesh) -> None:
    mesh.servicer.behave = lambda _r, _c: tasks.GetTaskResponse(task=Task(origin_instance=auth.acting_tenant()))
    named = call_metadata(tenant="other")
    async with mesh.channel("mesh", tenant="") as channel:
        assert (await get(channel, metadata=named)).task.origin_instance == "other"
        assert (await failure(get(channel))).reason == "NO_TENANT"
    async with mesh.channel("operator") as channel:
        assert (await get(channel, metadata=named)).task.origin_instance == "acme"


async def test_requests_are_filled_and_held_to_the_contract(mesh: Mesh) -> None:
    mesh.servicer.behave = lambda _r, _c: tasks.ListTasksResponse()
    async with mesh.channel("read") as channel:
        await TasksClient(channel).list()
        assert mesh.servicer.calls[0].limit == 100
        error = await failure(TasksClient(channel).list(tasks.ListTasksRequest(limit=0)))
        assert (error.kind, error.violations[0].path) == (ErrorKind.INVALID, "limit")
    assert len(mesh.servicer.calls) == 1


async def test_errors_arrive_as_they_were_raised(mesh: Mesh) -> None:
    raised = MeshError(
        ErrorKind.CONFLICT,
        "no",
        reason="WHY",
        violations=[errors.FieldViolation("a[0]", "b", "c")],
        metadata={"k": "v"},
    )

    def behave(_request: Any, _context: Any) -> None:
        raise raised

    mesh.servicer.behave = behave
    async with mesh.channel("read") as channel:
        assert await failure(get(channel)) == raised


async def test_an_unexpected_error_shows_an_identifier_and_no_text(mesh: Mesh) -> None:
    def behave(_request: Any, _context: Any) -> None:
        raise RuntimeError("password=hunter2 at 10.0.0.1")

    mesh.servicer.behave = behave
    async with mesh.channel("read") as channel:
        error = await failure(get(channel))
    assert error.kind is ErrorKind.INTERNAL
    assert error.message == f"Internal error {error.metadata['error_id']}"


async def test_a_service_without_room_is_unavailable(mesh: Mesh) -> None:
    def behave(_request: Any, _context: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/a/secret/path")

    mesh.servicer.behave = behave
    async with mesh.channel("read") as channel:
        error = await failure(get(channel))
    assert (error.kind, error.reason) == (ErrorKind.UNAVAILABLE, "NO_ROOM_LEFT")
    assert error.message == f"There is no room for this right now, error {error.metadata['error_id']}"


async def test_an_error_after_some_responses_ends_the_stream(mesh: Mesh) -> None:
    async def behave(_request: Any, _context: Any) -> AsyncIterator[tasks.WatchTaskResponse]:
        yield tasks.WatchTaskResponse(step=1)
        raise errors.not_found("Task", ID)

    mesh.servicer.behave = behave
    received = []
    async with mesh.channel("read") as channel:
        with pytest.raises(MeshError, match="not found"):  # noqa: PT012 -- what came before counts too
            async for response in channel.stub(TasksServiceStub).WatchTask(tasks.WatchTaskRequest(task_id=ID)):
                received.append(response.step)  # noqa: PERF401 -- what came before the error counts
    assert received == [1]


async def test_a_caller_that_leaves_ends_the_servicers_stream(mesh: Mesh) -> None:
    async def behave(_request: Any, _context: Any) -> AsyncIterator[tasks.WatchTaskResponse]:
        yield tasks.WatchTaskResponse(step=1)
        await asyncio.Event().wait()

    mesh.servicer.behave = behave
    async with mesh.channel("read") as channel:
        stream = channel.stub(TasksServiceStub).WatchTask(tasks.WatchTaskRequest(task_id=ID))
        assert (await anext(aiter(stream))).step == 1
        stream.cancel()
        async with asyncio.timeout(60):
            await mesh.servicer.cancelled.wait()


async def test_cancelling_a_stream_ends_the_iteration_over_it(mesh: Mesh) -> None:
    async def behave(_request: Any, _context: Any) -> AsyncIterator[tasks.WatchTaskResponse]:
        yield tasks.WatchTaskResponse(step=1)
        await asyncio.Event().wait()

    mesh.servicer.behave = behave
    received = []
    async with mesh.channel("read") as channel:
        stream = channel.stub(TasksServiceStub).WatchTask(tasks.WatchTaskRequest(task_id=ID))
        async with asyncio.timeout(60):
            async for response in stream:
                received.append(response.step)
                asyncio.get_running_loop().call_later(0.01, stream.cancel)
    assert received == [1]


async def test_an_unserved_method_is_unimplemented(mesh: Mesh) -> None:
    async with mesh.channel("write") as channel:
        assert (await failure(TasksClient(channel).delete(ID))).kind is ErrorKind.UNIMPLEMENTED


async def test_a_call_has_a_deadline_by_default_and_by_name(mesh: Mesh) -> None:
    async def hang(_request: Any, _context: Any) -> None:
        await asyncio.Event().wait()

    mesh.servicer.behave = hang
    async with mesh.channel("read", default_deadline_seconds=0.2) as channel:
        async with asyncio.timeout(20):  # deadlines of all other channels are later
            assert (await failure(get(channel))).kind is ErrorKind.DEADLINE
    async with mesh.channel("read", default_deadline_seconds=600) as channel:
        assert (await failure(get(channel, timeout=0.1))).kind is ErrorKind.DEADLINE


class Flaky:
    """Unavailable for the first calls."""

    def __init__(self, failures: int, answer: Any) -> None:
        self.failures = failures
        self.answer = answer

    def __call__(self, _request: Any, _context: Any) -> Any:
        if self.failures:
            self.failures -= 1
            raise errors.unavailable("not now")
        return self.answer


async def test_reading_is_repeated_while_the_service_is_unavailable(mesh: Mesh) -> None:
    mesh.servicer.behave = Flaky(3, tasks.GetTaskResponse(task=Task(id=ID)))
    async with mesh.channel("read") as channel:
        assert (await get(channel)).task.id == ID
        assert len(mesh.servicer.calls) == 4
        mesh.servicer.behave = Flaky(4, None)
        assert (await failure(get(channel))).kind is ErrorKind.UNAVAILABLE


async def test_a_create_is_repeated_under_its_key_and_only_under_one(mesh: Mesh) -> None:
    keys: list[str] = []
    flaky = Flaky(2, tasks.CreateTaskResponse(task=Task(id=ID)))

    def behave(request: Any, context: Any) -> Any:
        keys.append(idempotency.current_key())
        return flaky(request, context)

    mesh.servicer.behave = behave
    task = task_pb2.CreateTask(origin_instance="i", generation=CreateGenerationTask(prompt="a red dress"))
    async with mesh.channel("write") as channel:
        assert (await TasksClient(channel).create(task)).id == ID
        assert len(keys) == 3
        assert len(set(keys)) == 1
        assert keys[0]
        keys.clear()
        await TasksClient(channel).create(task, idempotency_key="mine")
        assert keys == ["mine"]
        flaky.failures = 1
        bare = channel.stub(TasksServiceStub).CreateTask(tasks.CreateTaskRequest(task=task))
        assert (await failure(bare)).kind is ErrorKind.UNAVAILABLE


async def test_other_writes_are_not_repeated(mesh: Mesh) -> None:
    mesh.servicer.behave = Flaky(1, tasks.CancelTaskResponse())
    async with mesh.channel("write") as channel:
        assert (await failure(TasksClient(channel).cancel(ID))).kind is ErrorKind.UNAVAILABLE
    assert len(mesh.servicer.calls) == 1


async def test_a_service_that_was_restarted_is_found_again(mesh: Mesh) -> None:
    address = mesh.server.address
    async with mesh.channel("read") as channel:
        await get(channel)
        await mesh.server.stop(0)
        assert (await failure(get(channel))).kind is ErrorKind.UNAVAILABLE
        mesh.server = mesh.make(address)
        await mesh.server.start()
        assert (await get(channel, wait_for_ready=True, timeout=60)).task.id == ID


async def test_calls_are_spread_over_all_addresses_of_a_name(mesh: Mesh) -> None:
    other = Mesh()
    await other.server.start()
    token = TokenIssuer(SECRET).issue("alice", "acme", ["read"], 60)
    target = f"ipv4:{mesh.server.address},{other.server.address}"
    async with MeshChannel(target, lambda: token) as channel:
        await channel.ready(60)
        async with asyncio.timeout(60):
            while not (mesh.servicer.calls and other.servicer.calls):
                await get(channel)
    await other.server.stop(0)


async def test_the_token_is_asked_for_with_every_call_and_so_renewed(mesh: Mesh) -> None:
    clock = [time.time() - 300]
    tokens = ServiceTokens(
        TokenIssuer(SECRET, clock=lambda: clock[0]), "s", ("read",), tenant="t", ttl_seconds=200, clock=lambda: clock[0]
    )
    async with MeshChannel(mesh.server.address, tokens.token) as channel:
        assert (await failure(get(channel))).reason == "TOKEN_EXPIRED"
        clock[0] += 300
        assert (await get(channel)).task.id == ID


async def test_trailing_metadata_of_an_answer_is_given_where_asked_for(mesh: Mesh) -> None:
    def behave(_request: Any, context: Any) -> tasks.GetTaskResponse:
        context.set_trailing_metadata((("idempotent-replayed", "true"),))
        return tasks.GetTaskResponse()

    mesh.servicer.behave = behave
    seen: list[tuple[str, str | bytes]] = []
    async with mesh.channel("read") as channel:
        await get(channel, trailing=seen.extend)
    assert ("idempotent-replayed", "true") in seen


async def test_a_watch_is_taken_up_where_it_broke_off(mesh: Mesh) -> None:
    async def behave(request: tasks.WatchTaskRequest, _context: Any) -> AsyncIterator[tasks.WatchTaskResponse]:
        after = request.after_version
        yield tasks.WatchTaskResponse(task=Task(id=ID, version=after + 1))
        if after < 2:
            raise errors.unavailable("restarting")
        done = Task(id=ID, version=after + 2, status=enums_pb2.TASK_STATUS_COMPLETED)
        yield tasks.WatchTaskResponse(task=done, final=True)

    mesh.servicer.behave = behave
    async with mesh.channel("read") as channel:
        versions = [state.task.version async for state in TasksClient(channel).watch(ID)]
    assert versions == [1, 2, 3, 4]


async def test_waiting_for_a_task_ends_with_it(mesh: Mesh) -> None:
    done = Task(id=ID, status=enums_pb2.TASK_STATUS_FAILED)

    async def watching() -> AsyncIterator[tasks.WatchTaskResponse]:
        yield tasks.WatchTaskResponse(task=done, final=True)

    mesh.servicer.behave = lambda request, _context: (
        watching() if isinstance(request, tasks.WatchTaskRequest) else tasks.GetTaskResponse(task=done)
    )
    async with mesh.channel("read") as channel:
        task = await TasksClient(channel).wait(ID, 10)
    assert task.status == enums_pb2.TASK_STATUS_FAILED


async def test_the_documented_example_runs(mesh: Mesh) -> None:
    done = Task(id=ID, status=enums_pb2.TASK_STATUS_COMPLETED)

    async def watching() -> AsyncIterator[tasks.WatchTaskResponse]:
        yield tasks.WatchTaskResponse(task=done, final=True)

    def behave(request: Any, _context: Any) -> Any:
        if isinstance(request, tasks.WatchTaskRequest):
            return watching()
        created = isinstance(request, tasks.CreateTaskRequest)
        return tasks.CreateTaskResponse(task=done) if created else tasks.GetTaskResponse(task=done)

    mesh.servicer.behave = behave
    example = CLIENT_GUIDE.read_text().partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(example, names)
    assert await names["main"](mesh.server.address, SECRET) == ID
    assert mesh.servicer.calls[0].task.generation.prompt == "a red dress"


async def test_health_is_told_to_anyone_by_service(mesh: Mesh) -> None:
    async with grpc.aio.insecure_channel(mesh.server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def status(service: str) -> int:
            return int((await stub.Check(health_pb2.HealthCheckRequest(service=service))).status)

        assert await status("") == health_pb2.HealthCheckResponse.SERVING
        await mesh.server.set_health(SERVICE, serving=False)
        assert await status(SERVICE) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await status("") == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
            await status("unknown")


async def test_a_stop_lets_calls_in_flight_end(mesh: Mesh) -> None:
    began, finish = asyncio.Event(), asyncio.Event()

    async def slow(_request: Any, _context: Any) -> tasks.GetTaskResponse:
        began.set()
        await finish.wait()
        return tasks.GetTaskResponse(task=Task(id=ID))

    mesh.servicer.behave = slow
    async with mesh.channel("read") as channel:
        running = asyncio.ensure_future(get(channel))
        await began.wait()
        stopping = asyncio.create_task(mesh.server.stop(120))
        async with asyncio.timeout(60):
            while (await failure(_at_once(mesh))).kind is not ErrorKind.UNAVAILABLE:  # noqa: ASYNC110 -- what is waited for has no event
                await asyncio.sleep(0.01)
        finish.set()
        assert (await running).task.id == ID
        await stopping


async def _at_once(mesh: Mesh) -> Any:
    async with mesh.channel("mesh", services=()) as channel:
        return await get(channel, timeout=0.5)


async def test_a_taken_address_is_an_error(mesh: Mesh) -> None:
    assert (await failure(mesh.make(mesh.server.address).start())).reason == "ADDRESS_IN_USE"


async def test_many_violations_still_arrive(mesh: Mesh) -> None:
    def behave(_request: Any, _context: Any) -> None:
        raise MeshError(
            ErrorKind.INVALID,
            "bad",
            violations=[errors.FieldViolation(f"a[{i}]", "x" * 80) for i in range(500)],
        )

    mesh.servicer.behave = behave
    async with mesh.channel("read") as channel:
        error = await failure(get(channel))
    assert error.kind is ErrorKind.INVALID
    assert len(error.violations) > 20
