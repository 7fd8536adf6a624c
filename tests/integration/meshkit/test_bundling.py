"""Short calls that travel together: each is served, judged and answered as if it had come alone."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from atelier.mesh.v1.bundle_service_pb2 import BundledCall, CarryRequest, Metadatum
from atelier.mesh.v1.bundle_service_pb2_grpc import BundleServiceStub
from atelier.tasks.v1 import tasks_service_pb2 as tasks
from atelier.tasks.v1.generation_pb2 import CreateGenerationTask
from atelier.tasks.v1.noop_pb2 import CreateNoopTask
from atelier.tasks.v1.task_pb2 import CreateTask
from atelier.tasks.v1.tasks_service_pb2_grpc import TasksServiceStub, add_TasksServiceServicer_to_server

from meshkit import auth, idempotency, metrics, tracing
from meshkit.auth import TokenIssuer
from meshkit.channel import MeshChannel, call_metadata
from meshkit.errors import ErrorKind, FieldViolation, MeshError, conflict
from tests.integration.meshkit.serving import SECRET, Mesh, Task, failure

CREATE = "/atelier.tasks.v1.TasksService/CreateTask"
_BUNDLES = metrics.histogram("rpc_bundle_calls", "Calls that came in one bundle", ())


@pytest.fixture
async def channel(mesh: Mesh) -> AsyncIterator[MeshChannel]:
    mesh.servicer.behave = _echo
    async with mesh.channel("read", "write") as channel:
        yield channel


def _echo(request: tasks.CreateTaskRequest, _context: Any) -> tasks.CreateTaskResponse:
    return tasks.CreateTaskResponse(task=Task(origin_reference=request.task.origin_reference))


def _request(reference: str, **noop: Any) -> tasks.CreateTaskRequest:
    task = CreateTask(origin_instance="test", origin_reference=reference, noop=CreateNoopTask(**noop))
    return tasks.CreateTaskRequest(task=task)


async def _create(channel: MeshChannel, reference: str, **options: Any) -> str:
    response = await channel.stub(TasksServiceStub).CreateTask(_request(reference), **options)
    return str(response.task.origin_reference)


def _token(*scopes: str, subject: str = "alice", tenant: str = "acme") -> str:
    return TokenIssuer(SECRET).issue(subject, tenant, scopes, 60)


def _carried() -> float:
    """Calls that came in bundles so far."""
    return sum(sample.value for one in _BUNDLES.collect() for sample in one.samples if sample.name.endswith("_sum"))


async def test_calls_at_the_same_time_travel_together_and_each_has_its_own_answer(channel: MeshChannel) -> None:
    before = _carried()
    names = [f"n{number}" for number in range(100)]
    assert await asyncio.gather(*(_create(channel, name) for name in names)) == names
    assert _carried() - before >= 90, "most of them were bundled"


async def test_a_lone_call_goes_by_itself(channel: MeshChannel) -> None:
    before = _carried()
    for number in range(5):
        assert await _create(channel, f"n{number}") == f"n{number}"
    assert _carried() == before


async def test_each_call_keeps_its_caller_tenant_trace_and_key(mesh: Mesh, channel: MeshChannel) -> None:
    seen: dict[str, tuple[str, ...]] = {}

    async def behave(request: Any, _context: Any) -> tasks.CreateTaskResponse:
        await asyncio.sleep(0.01)  # so that all of them are under way together
        trace = tracing.current()
        assert trace is not None
        who, tenant, key = auth.current().subject, auth.acting_tenant() or "", idempotency.current_key()
        seen[request.task.origin_reference] = (who, tenant, key, trace.trace_id, trace.request_id)
        return tasks.CreateTaskResponse()

    mesh.servicer.behave = behave

    async def one(number: int) -> None:
        token = _token("write", subject=f"user{number}", tenant=f"tenant{number}")
        metadata = call_metadata(token=token, idempotency_key=f"key{number}")
        with tracing.activated(tracing.begin(f"00-{number + 1:032x}-{'b' * 16}-01", f"order-{number}")):
            await _create(channel, f"n{number}", metadata=metadata)

    before = _carried()
    await asyncio.gather(*(one(number) for number in range(20)))
    assert _carried() - before >= 15
    assert seen == {
        f"n{number}": (f"user{number}", f"tenant{number}", f"key{number}", f"{number + 1:032x}", f"order-{number}")
        for number in range(20)
    }


async def test_a_refused_call_spoils_no_other(mesh: Mesh, channel: MeshChannel) -> None:
    """A foreign token, a lacking scope, a bad member and an error of the servicer, among calls that are fine."""
    violation = FieldViolation("task.priority", "no", "why")

    def behave(request: Any, context: Any) -> tasks.CreateTaskResponse:
        if request.task.origin_reference == "taken":
            raise conflict("It is taken", reason="TAKEN")
        if request.task.origin_reference == "wrong":
            raise MeshError(ErrorKind.INVALID, "Not so", violations=[violation])
        if request.task.origin_reference == "broken":
            raise RuntimeError("a secret")
        if request.task.origin_reference == "again":
            context.set_trailing_metadata((("idempotent-replayed", "true"),))
        return _echo(request, context)

    mesh.servicer.behave = behave
    trailing: list[Any] = []
    bad = tasks.CreateTaskRequest(task=CreateTask(origin_instance="t", generation=CreateGenerationTask(width=-5)))
    before = _carried()
    # The first one's token opens the bundle.
    results = await asyncio.gather(
        *(_create(channel, f"n{number}") for number in range(4)),
        _create(channel, "taken"),
        _create(channel, "wrong"),
        _create(channel, "broken"),
        _create(channel, "again", trailing=trailing.extend),
        _create(channel, "n8", metadata=call_metadata(token="foreign")),
        _create(channel, "n9", metadata=call_metadata(token=_token("read"))),
        channel.stub(TasksServiceStub).CreateTask(bad),
        return_exceptions=True,
    )
    assert _carried() - before >= 8
    assert results[:4] == ["n0", "n1", "n2", "n3"]
    taken, wrong, broken, again, foreign, reader, held = results[4:]
    assert isinstance(taken, MeshError)
    assert (taken.kind, taken.message, taken.reason) == (ErrorKind.CONFLICT, "It is taken", "TAKEN")
    assert isinstance(wrong, MeshError)
    assert list(wrong.violations) == [violation]
    assert isinstance(broken, MeshError)
    assert broken.kind is ErrorKind.INTERNAL
    assert "secret" not in broken.message
    assert again == "again"
    assert ("idempotent-replayed", "true") in trailing
    assert isinstance(foreign, MeshError)
    assert foreign.kind is ErrorKind.UNAUTHENTICATED
    assert isinstance(reader, MeshError)
    assert reader.metadata["scope"] == "write"
    assert isinstance(held, MeshError)
    assert held.kind is ErrorKind.INVALID
    assert any(one.path.endswith("width") for one in held.violations)


async def test_a_bundle_that_a_foreign_token_opens_harms_nobody(channel: MeshChannel) -> None:
    results = await asyncio.gather(
        *(_create(channel, f"bad{number}", metadata=call_metadata(token="foreign")) for number in range(3)),
        *(_create(channel, f"n{number}") for number in range(6)),
        return_exceptions=True,
    )
    assert [isinstance(one, MeshError) and one.kind is ErrorKind.UNAUTHENTICATED for one in results[:3]] == [True] * 3
    assert results[3:] == [f"n{number}" for number in range(6)]


async def test_a_slow_call_keeps_no_other_waiting(mesh: Mesh, channel: MeshChannel) -> None:
    gate = asyncio.Event()

    async def behave(request: Any, context: Any) -> tasks.CreateTaskResponse:
        if request.task.origin_reference == "slow":
            await gate.wait()
        return _echo(request, context)

    mesh.servicer.behave = behave
    jobs = [asyncio.ensure_future(_create(channel, name)) for name in ("first", "slow", "third", "fourth")]
    async with asyncio.timeout(60):
        assert [await jobs[index] for index in (0, 2, 3)] == ["first", "third", "fourth"]
        assert not jobs[1].done()
        gate.set()
        assert await jobs[1] == "slow"


async def test_a_call_in_company_has_its_own_deadline_and_may_be_given_up(mesh: Mesh, channel: MeshChannel) -> None:
    async def behave(request: Any, context: Any) -> tasks.CreateTaskResponse:
        if request.task.origin_reference.startswith("slow"):
            await asyncio.sleep(30)
        return _echo(request, context)

    mesh.servicer.behave = behave
    jobs = [asyncio.ensure_future(_create(channel, f"slow{number}", timeout=0.2)) for number in range(3)]
    left = asyncio.ensure_future(_create(channel, "slow"))
    fine = [asyncio.ensure_future(_create(channel, f"n{number}")) for number in range(3)]
    for job in jobs:
        assert (await failure(job)).kind is ErrorKind.DEADLINE
    left.cancel()
    assert await asyncio.gather(*fine) == ["n0", "n1", "n2"]
    assert await _create(channel, "after") == "after"


async def test_large_calls_go_by_themselves(channel: MeshChannel) -> None:
    stub = channel.stub(TasksServiceStub)
    before = _carried()
    large = _request("large", payload="x" * 65_536)
    answers = await asyncio.gather(*(stub.CreateTask(large) for _ in range(4)))
    assert [answer.task.origin_reference for answer in answers] == ["large"] * 4
    assert _carried() == before


async def test_a_server_without_bundles_is_called_plainly() -> None:
    """One of an earlier release, during an update."""
    mesh = Mesh()
    mesh.servicer.behave = _echo
    server = grpc.aio.server()
    add_TasksServiceServicer_to_server(mesh.servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with MeshChannel(f"127.0.0.1:{port}", lambda: "any") as channel:
        names = [f"n{number}" for number in range(10)]
        for _ in range(2):
            assert await asyncio.gather(*(_create(channel, name) for name in names)) == names
    await server.stop(0)


async def test_a_server_that_goes_away_fails_all_and_keyed_calls_are_repeated(mesh: Mesh) -> None:
    begun = asyncio.Semaphore(0)
    tries: dict[str, int] = {}

    async def behave(request: Any, context: Any) -> tasks.CreateTaskResponse:
        name = request.task.origin_reference
        tries[name] = tries.get(name, 0) + 1
        if tries[name] == 1:
            begun.release()
            await asyncio.sleep(30)
        return _echo(request, context)

    mesh.servicer.behave = behave
    async with mesh.channel("write") as channel:
        keyed = [
            asyncio.ensure_future(_create(channel, f"k{n}", metadata=call_metadata(idempotency_key=f"k{n}")))
            for n in range(4)
        ]
        plain = [asyncio.ensure_future(_create(channel, f"p{n}")) for n in range(4)]
        for _ in (*keyed, *plain):  # one that has not begun would be made at the other server
            await begun.acquire()
        address = mesh.server.address
        await mesh.server.stop(0)
        again = mesh.make(address)
        await again.start()
        try:
            assert {(await failure(job)).kind for job in plain} <= {ErrorKind.UNAVAILABLE, ErrorKind.ABORTED}
            assert await asyncio.gather(*keyed, return_exceptions=True) == ["k0", "k1", "k2", "k3"]
        finally:
            await again.stop(0)


async def test_a_client_that_goes_away_ends_its_calls(mesh: Mesh) -> None:
    begun, ended = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def behave(_request: Any, _context: Any) -> tasks.CreateTaskResponse:
        begun.release()
        try:
            await asyncio.sleep(30)
        finally:
            ended.release()
        raise AssertionError("nobody ended it")

    mesh.servicer.behave = behave
    channel = mesh.channel("write")
    jobs = [asyncio.ensure_future(_create(channel, f"n{number}")) for number in range(5)]
    for _ in jobs:
        await begun.acquire()
    await channel.close()
    outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    assert all(isinstance(one, MeshError | asyncio.CancelledError) for one in outcomes)
    async with asyncio.timeout(60):
        for _ in jobs:
            await ended.acquire()


async def _carry(mesh: Mesh, calls: list[BundledCall], token: str | None) -> list[Any]:
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    async with grpc.aio.insecure_channel(mesh.server.address) as channel:
        stream = BundleServiceStub(channel).Carry(CarryRequest(calls=calls), metadata=metadata)
        return [outcome async for response in stream for outcome in response.outcomes]


async def test_a_bundle_itself_is_held_to_its_contract(mesh: Mesh) -> None:
    mesh.servicer.behave = _echo
    token = _token("read", "write")
    own = [Metadatum(key="authorization", value=f"Bearer {token}")]
    good = BundledCall(method=CREATE, request=_request("a").SerializeToString(), metadata=own)
    for calls, opened, code in (
        ([good], None, grpc.StatusCode.UNAUTHENTICATED),
        ([good], "foreign", grpc.StatusCode.UNAUTHENTICATED),
        ([], token, grpc.StatusCode.INVALID_ARGUMENT),
        ([good] * 65, token, grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _carry(mesh, calls, opened)
        assert caught.value.code() is code
    assert mesh.servicer.calls == []
    outcomes = await _carry(
        mesh,
        [
            good,
            BundledCall(method=CREATE, request=good.request),  # the bundle's token is not the call's
            BundledCall(method="/atelier.tasks.v1.TasksService/GetTask", metadata=own),  # the contract does not say so
            BundledCall(method="/atelier.tasks.v1.TasksService/Nothing", metadata=own),
            BundledCall(method=CREATE, request=b"\xff\xff", metadata=own),
        ],
        token,
    )
    codes = {outcome.index: outcome.code for outcome in outcomes}
    unauthenticated, unimplemented, invalid = (
        grpc.StatusCode[name].value[0] for name in ("UNAUTHENTICATED", "UNIMPLEMENTED", "INVALID_ARGUMENT")
    )
    assert codes == {0: 0, 1: unauthenticated, 2: unimplemented, 3: unimplemented, 4: invalid}
    assert len(mesh.servicer.calls) == 1


async def test_calls_in_bundles_count_as_calls() -> None:
    mesh = Mesh(max_concurrent_calls=4)
    await mesh.server.start()
    gate = asyncio.Event()

    async def behave(request: Any, context: Any) -> tasks.CreateTaskResponse:
        await gate.wait()
        return _echo(request, context)

    mesh.servicer.behave = behave
    async with mesh.channel("write") as channel:
        jobs = [asyncio.ensure_future(_create(channel, f"n{number}")) for number in range(12)]
        async with asyncio.timeout(60):
            while sum(job.done() for job in jobs) < 8:  # noqa: ASYNC110 -- each of them is one that ends
                await asyncio.sleep(0.01)
        _, waiting = await asyncio.wait(jobs, timeout=0.3)
        assert len(waiting) == 4
        gate.set()
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    await mesh.server.stop(0)
    assert sum(isinstance(one, str) for one in outcomes) == 4
    refused = [one for one in outcomes if isinstance(one, MeshError)]
    assert {(one.kind, one.reason) for one in refused} == {(ErrorKind.EXHAUSTED, "TOO_MANY_CALLS")}
