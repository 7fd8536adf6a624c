"""Gates before providers: what is leased while they are shut, and that replicas agree."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from atelier.tasks.v1 import enums_pb2, task_pb2, tasks_service_pb2, worker_service_pb2
from atelier.tasks.v1 import service_requests_pb2 as pb
from prometheus_client import REGISTRY

from meshkit.errors import ErrorKind, MeshError
from services.tasks.convert import timestamp
from services.tasks.postgres import gates, usage
from services.tasks.service_requests import ServiceRequestEffect
from tests.integration.tasks.conftest import Mesh, StartMesh, Worker, duration, ref, until
from tests.integration.tasks.test_creates import encoded, png

FAL = enums_pb2.PROVIDER_TYPE_FAL_STANDARD
FAILED = pb.SERVICE_REQUEST_STATE_FAILED
SERVED = {
    "served_task_types": ("EXPERIMENTAL_FAL", "IMAGE_ADJUSTER"),
    "served_providers": ("LOCAL", "FAL_STANDARD"),
}
APP = "house/painter"
LIST = tasks_service_pb2.ListProvidersRequest()
NIGHT = datetime(2026, 3, 1, 23, 59, 50, tzinfo=UTC)


def limits(**members: Any) -> dict[str, Any]:
    return SERVED | {"provider_limits": {"FAL_STANDARD": members}}


async def call(
    mesh: Mesh, count: int = 1, *, app: str = APP, tenant: str = "acme", queue: str | None = None
) -> list[str]:
    """Creates tasks that call an application; returns their ids."""
    stub = mesh.tasks(tenant)
    task = task_pb2.CreateTask(origin_instance="tests", queue_name=queue)
    task.experimental_fal.fal_app_id = app
    return [(await mesh.create(task, tenant, stub=stub)).id for _ in range(count)]


async def caller(mesh: Mesh, name: str = "p/0", queue: str = "fal") -> Worker:
    return await mesh.worker(
        queues=(queue,), types=(enums_pb2.TASK_TYPE_EXPERIMENTAL_FAL,), providers=(FAL,), name=name
    )


async def note(
    worker: Worker,
    lease: worker_service_pb2.Lease,
    effect: ServiceRequestEffect,
    retry_after: float | None = None,
    **members: Any,
) -> str:
    """Notes a request of an attempt, and its end; returns its identifier."""
    request = pb.ServiceRequest(
        id=str(uuid4()),
        provider_type=members.pop("provider_type", FAL),
        target=members.pop("target", APP),
        operation="submit",
        sent_at=members.pop("sent_at", None),
    )
    done = effect is ServiceRequestEffect.SUCCESS
    for state in (pb.SERVICE_REQUEST_STATE_SENDING, pb.SERVICE_REQUEST_STATE_DONE if done else FAILED):
        request.state = state
        if state != pb.SERVICE_REQUEST_STATE_SENDING:
            request.effect = pb.ServiceRequestEffect.Value(f"SERVICE_REQUEST_EFFECT_{effect}")
            if retry_after is not None:
                request.retry_after.CopyFrom(duration(retry_after))
            request.MergeFrom(pb.ServiceRequest(**members))
        await worker.stub.NoteServiceRequest(
            worker_service_pb2.NoteServiceRequestRequest(session_id=worker.session, ref=ref(lease), request=request)
        )
    return request.id


async def gate(mesh: Mesh, columns: str = "state", key: str = APP) -> Any:
    [row] = await mesh.rows(f"SELECT {columns} FROM provider_gates WHERE key = %s", key)
    return row[0] if len(row) == 1 else row


async def break_it(mesh: Mesh, worker: Worker, app: str = APP) -> None:
    """Opens the breaker of an application by a call of its own."""
    await call(mesh, app=app)
    [lease] = await worker.lease(1)
    await note(worker, lease, ServiceRequestEffect.FATAL)
    await worker.fail(lease, retryable=False)
    assert await gate(mesh, key=app) == "open"


async def half_open(mesh: Mesh) -> None:
    """Lets the time of open breakers run out."""
    await mesh.execute("UPDATE provider_gates SET opened_at = opened_at - interval '1 hour' WHERE state = 'open'")


def ids(leases: Sequence[worker_service_pb2.Lease]) -> set[str]:
    return {lease.job_id for lease in leases}


async def test_tasks_of_an_open_breaker_wait_and_others_go_on(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(**SERVED)
    worker = await caller(mesh)
    await break_it(mesh, worker)
    await call(mesh, 3)
    others = await call(mesh, 2, app="house/writer")
    assert ids(await worker.lease(8)) == set(others)
    assert await worker.lease(8, wait=0.2) == []
    [[waiting]] = await mesh.rows("SELECT count(*) FROM tasks WHERE status = 'PENDING'")
    assert waiting == 3
    rejected, since = await gate(mesh, "rejected_calls, waiting_since")
    assert rejected > 0
    assert since is not None


async def test_gates_at_rest_cost_no_row_and_their_calls_are_counted_later(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(**SERVED)
    worker = await caller(mesh)
    await call(mesh, 3)
    await call(mesh, 2, app="house/writer")
    assert len(await worker.lease(8)) == 5
    listed = {
        one.provider_type: one for one in (await mesh.tasks("", ("operator", "read")).ListProviders(LIST)).providers
    }
    assert {one.key: one.total_calls for one in listed[FAL].gates} == {APP: 3, "house/writer": 2}
    await mesh.running.maintenance.count_calls()
    assert await gate(mesh, "total_calls") == 3


async def test_replica_that_trusts_a_gate_sees_that_another_one_has_opened_its_breaker(start_mesh: StartMesh) -> None:
    first, second = await start_mesh(**SERVED), await start_mesh(**SERVED)
    one, other = await caller(first), await caller(second, "p/1")
    await call(first, 2)
    assert len(await other.lease(1)) == len(await one.lease(1)) == 1
    await break_it(first, one)
    await call(first, 4)
    others = await call(first, 1, app="house/writer")
    assert ids(await other.lease(8)) == set(others)
    assert await other.lease(8, wait=0.1) == []
    await first.execute("UPDATE provider_gates SET state = 'closed', opened_at = NULL")
    assert len(await other.lease(8)) == 4
    [[since]] = await first.rows("SELECT waiting_since FROM provider_gates WHERE key = %s", APP)
    assert since is None


async def test_failures_in_a_row_open_and_a_success_between_them_does_not(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(**limits(failure_threshold=2))
    worker = await caller(mesh)
    await call(mesh, 5)
    one, two, three, four, _ = await worker.lease(5)
    await note(worker, one, ServiceRequestEffect.FAILURE)
    await note(worker, two, ServiceRequestEffect.SUCCESS)
    await note(worker, three, ServiceRequestEffect.FAILURE)
    assert await gate(mesh) == "closed"
    await note(worker, four, ServiceRequestEffect.FAILURE)
    assert await gate(mesh) == "open"


async def test_half_open_admits_exactly_so_many_from_two_replicas_and_queues(start_mesh: StartMesh) -> None:
    meshes = first, _ = await start_mesh(**SERVED), await start_mesh(**SERVED)
    queues = ("fal", "ai_core")
    workers = [await caller(mesh, f"p/{mesh.running.address}/{queue}", queue) for mesh in meshes for queue in queues]
    await break_it(first, workers[0])
    for queue in queues:
        await call(first, 10, queue=queue)
    polls = [asyncio.create_task(worker.lease(8, wait=8)) for worker in workers]
    await until(lambda: passed_over(first))
    await half_open(first)
    leases = [lease for poll in asyncio.as_completed(polls) for lease in await poll]
    assert len(leases) == 3
    await first.running.maintenance.count_calls()
    assert await gate(first, "state, cardinality(trials), total_calls") == ("half_open", 3, 4)


async def passed_over(mesh: Mesh) -> bool:
    return bool(await gate(mesh, "rejected_calls"))


async def test_trials_that_succeed_close_and_one_that_fails_opens_again(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(**SERVED)
    worker = await caller(mesh)
    await break_it(mesh, worker)
    await call(mesh, 10)
    await half_open(mesh)
    one, two, three = await worker.lease(8)
    await note(worker, one, ServiceRequestEffect.SUCCESS)
    assert await worker.lease(8, wait=0.1) == []
    await note(worker, two, ServiceRequestEffect.FAILURE)
    assert await gate(mesh) == "open"
    await note(worker, three, ServiceRequestEffect.SUCCESS)
    assert await gate(mesh) == "open"
    await half_open(mesh)
    four, five, _ = await worker.lease(8)
    await note(worker, four, ServiceRequestEffect.SUCCESS)
    await note(worker, five, ServiceRequestEffect.SUCCESS)
    assert await gate(mesh) == "closed"
    assert len(await worker.lease(8)) == 4


async def test_trial_of_a_lost_worker_gives_its_place_back(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(**SERVED)
    worker, lost = await caller(mesh), await caller(mesh, "p/lost")
    await break_it(mesh, worker)
    await call(mesh, 10)
    await half_open(mesh)
    assert len(await lost.lease(2)) == 2
    assert len(await worker.lease(8)) == 1
    assert await worker.lease(8, wait=0.1) == []
    await mesh.execute("UPDATE sessions SET expires_at = now() - interval '1 s' WHERE id = %s", lost.session)
    await mesh.running.maintenance.expire()
    assert len(await worker.lease(8)) == 2
    assert await worker.lease(8, wait=0.1) == []


async def test_trial_that_says_nothing_gives_its_place_back(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(**SERVED)
    worker = await caller(mesh)
    await break_it(mesh, worker)
    await call(mesh, 10)
    await half_open(mesh)
    one, *_ = await worker.lease(8)
    await note(worker, one, ServiceRequestEffect.IGNORED)
    await worker.fail(one, retryable=False)
    assert len(await worker.lease(8)) == 1


async def test_calls_at_once_are_bounded_over_replicas_and_applications(start_mesh: StartMesh) -> None:
    first, second = await start_mesh(**limits(concurrency=3)), await start_mesh(**limits(concurrency=3))
    workers = [await caller(mesh, f"p/{number}") for number, mesh in enumerate((first, second))]
    for app in (APP, "house/writer"):
        await call(first, 4, app=app)
    found = await asyncio.gather(*(worker.lease(4, wait=3) for worker in workers))
    assert sum(map(len, found)) == 3
    holder, leases = next((worker, leases) for worker, leases in zip(workers, found, strict=True) if leases)
    poll = asyncio.create_task(holder.lease(4))
    await holder.complete(leases[0])
    assert len(await poll) == 1


async def test_calls_of_a_tenant_at_once_are_bounded_and_others_go_on(start_mesh: StartMesh) -> None:
    calls = {"tenant_provider_limits": {"*": {"FAL_STANDARD": 1}, "large": {"FAL_STANDARD": 3}}}
    mesh = await start_mesh(**SERVED, **calls)
    worker = await caller(mesh)
    for tenant in ("small", "large", "other"):
        await call(mesh, 5, tenant=tenant)
    leases = await worker.lease(16)
    while more := await worker.lease(16, wait=1):
        leases += more
    tenants = sorted(lease.tenant for lease in leases)
    assert tenants == ["large", "large", "large", "other", "small"]
    told = (await mesh.tasks("large").GetLimits(tasks_service_pb2.GetLimitsRequest())).limits
    assert [(one.most, one.used) for one in told if one.name == "provider_calls/FAL_STANDARD"] == [(3, 3)]


async def test_rate_of_a_tenant_is_held_over_replicas_and_others_go_on(start_mesh: StartMesh) -> None:
    rates = {
        "tenant_provider_limits": {"*": {"FAL_STANDARD": {"rate": 0.001, "burst": 2}}, "large": {"FAL_STANDARD": 9}}
    }
    meshes = first, _ = await start_mesh(**SERVED, **rates), await start_mesh(**SERVED, **rates)
    workers = [await caller(mesh, f"p/{number}") for number, mesh in enumerate(meshes)]
    for tenant in ("small", "large", "other"):
        await call(first, 5, tenant=tenant)
    leases = [lease for one in await asyncio.gather(*(worker.lease(16, wait=3) for worker in workers)) for lease in one]
    while more := [lease for worker in workers for lease in await worker.lease(16, wait=1)]:
        leases += more
    assert sorted(lease.tenant for lease in leases) == ["large"] * 5 + ["other"] * 2 + ["small"] * 2
    await first.execute("UPDATE provider_tenants SET filled_at = filled_at - interval '1 hour' WHERE tenant = 'small'")
    assert {lease.tenant for lease in await workers[0].lease(16)} == {"small"}


async def test_gates_and_lanes_that_nobody_uses_are_forgotten(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(**SERVED)
    worker = await caller(mesh)
    await call(mesh, 2)
    await call(mesh, 1, app="house/writer")
    assert len(await worker.lease(2)) == 2
    await mesh.running.maintenance.count_calls()
    await mesh.running.maintenance.forget()
    assert await gate(mesh, "total_calls") == 2
    await mesh.execute("UPDATE provider_gates SET used_at = now() - interval '8 days'")
    await mesh.running.maintenance.forget()
    assert await mesh.rows("SELECT * FROM provider_gates") == []
    assert await mesh.rows("SELECT lane, pending FROM queue_lanes") == [
        ("EXPERIMENTAL_FAL/FAL_STANDARD/house/writer", 1)
    ]
    assert len(await worker.lease(2)) == 1
    await call(mesh, 1)
    assert len(await worker.lease(2)) == 1


async def test_breakers_are_measured_by_provider_and_state(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(**SERVED)
    worker = await caller(mesh)
    await break_it(mesh, worker)
    await break_it(mesh, worker, "house/writer")
    await mesh.running.maintenance.measure()
    values = {
        state: REGISTRY.get_sample_value(
            "atelier_tasks_provider_breakers", {"provider": "FAL_STANDARD", "state": state}
        )
        for state in ("closed", "open", "half_open")
    }
    assert values == {"closed": 0, "open": 2, "half_open": 0}


async def test_rate_is_held_and_its_burst_given_at_once(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(**limits(rate=0.001, burst=4))
    worker = await caller(mesh)
    await call(mesh, 6)
    assert len(await worker.lease(3)) == 3
    assert len(await worker.lease(3)) == 1
    assert await worker.lease(3, wait=0.2) == []
    await mesh.execute("UPDATE provider_gates SET filled_at = filled_at - interval '1 hour' WHERE key = ''")
    assert len(await worker.lease(3)) == 2


async def test_provider_that_asks_to_be_left_alone_is_and_its_breaker_stays_closed(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(**SERVED)
    worker = await caller(mesh)
    await call(mesh, 2)
    [lease] = await worker.lease(1)
    await note(worker, lease, ServiceRequestEffect.IGNORED, retry_after=3)
    assert await gate(mesh) == "closed"
    assert await worker.lease(1, wait=0.1) == []
    assert len(await worker.lease(1)) == 1


async def test_work_of_the_mesh_itself_asks_for_no_gate(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(**limits(concurrency=1))
    worker = await mesh.worker()
    await mesh.create()
    assert len(await worker.lease(1)) == 1
    assert await mesh.rows("SELECT * FROM provider_gates") == []


async def test_operators_see_gates_and_close_breakers_and_callers_do_not(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(**limits(concurrency=7))
    worker = await caller(mesh)
    await break_it(mesh, worker)
    running = await call(mesh, 2, app="house/writer")
    assert len(await worker.lease(2)) == 2
    await call(mesh, 5)
    assert await worker.lease(8, wait=0.1) == []
    operator = mesh.tasks("", ("operator", "read"))
    listed = {one.provider_type: one for one in (await operator.ListProviders(LIST)).providers}
    assert [number for number, one in listed.items() if one.served] == [enums_pb2.PROVIDER_TYPE_LOCAL, FAL]
    gates = {one.key: one for one in listed[FAL].gates}
    assert (gates[APP].state, gates[APP].total_calls) == (tasks_service_pb2.BREAKER_STATE_OPEN, 1)
    assert gates["house/writer"].running == gates[""].running == len(running)
    assert gates[""].concurrency == 7
    public = {one.provider_type: one for one in (await mesh.tasks().ListProviders(LIST)).providers}
    assert not public[FAL].gates
    assert public[FAL].tasks == listed[FAL].tasks
    reset = tasks_service_pb2.ResetProviderBreakerRequest(provider_type=FAL, key=APP)
    with pytest.raises(MeshError) as refused:
        await mesh.tasks().ResetProviderBreaker(reset)
    assert refused.value.kind is ErrorKind.FORBIDDEN
    answer = await operator.ResetProviderBreaker(reset)
    assert answer.previous_state == tasks_service_pb2.BREAKER_STATE_OPEN
    assert answer.new_state == tasks_service_pb2.BREAKER_STATE_CLOSED
    assert len(await worker.lease(8)) == 5
    reset.key = "house/unknown"
    with pytest.raises(MeshError) as unknown:
        await operator.ResetProviderBreaker(reset)
    assert unknown.value.kind is ErrorKind.NOT_FOUND


async def test_more_lanes_than_a_round_looks_at_are_served_in_turn(
    start_mesh: StartMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "MAX_LANES", 2)
    mesh = await start_mesh(**SERVED)
    worker = await caller(mesh)
    tasks = {task for number in range(5) for task in await call(mesh, app=f"house/app-{number}")}
    found: set[str] = set()
    while found != tasks:
        found |= ids(await worker.lease(8))


async def test_task_whose_application_changes_waits_in_the_other_lane(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(**SERVED)
    [task] = await call(mesh)
    update = task_pb2.TaskUpdate(fal_app_id="house/writer")
    await mesh.tasks().UpdateTask(tasks_service_pb2.UpdateTaskRequest(task_id=task, update=update))
    assert await mesh.rows("SELECT lane FROM tasks") == [("EXPERIMENTAL_FAL/FAL_STANDARD/house/writer",)]
    assert ids(await (await caller(mesh)).lease(1)) == {task}


async def test_request_that_is_noted_again_moves_the_breaker_once(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(**SERVED)
    worker = await caller(mesh)
    await call(mesh)
    [lease] = await worker.lease(1)
    request = pb.ServiceRequest(
        id=str(uuid4()), provider_type=FAL, state=FAILED, effect=pb.SERVICE_REQUEST_EFFECT_FAILURE
    )
    for _ in range(6):
        await worker.stub.NoteServiceRequest(
            worker_service_pb2.NoteServiceRequestRequest(session_id=worker.session, ref=ref(lease), request=request)
        )
    assert await gate(mesh, "state, failure_count") == ("closed", 1)


async def test_what_requests_have_used_is_counted_by_tenant_provider_and_day(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(**SERVED)
    worker = await caller(mesh)
    for tenant in ("acme", "acme", "other"):
        await call(mesh, tenant=tenant)
    moments: dict[str, Any] = {"sent_at": timestamp(NIGHT), "ended_at": timestamp(NIGHT + timedelta(seconds=20))}
    for lease in await worker.lease(3):
        await note(worker, lease, ServiceRequestEffect.SUCCESS, cost=0.25, currency="USD", **moments)
        await note(worker, lease, ServiceRequestEffect.FAILURE, **moments)
    async with mesh.running.database.connection() as conn:
        first, last = NIGHT.date(), NIGHT.date() + timedelta(days=1)
        assert await usage.used(conn, None, first, first) == []
        own = await usage.used(conn, "other", first, last)
        everyone = await usage.used(conn, None, first, last)
    assert [(row.currency, row.calls, row.failed_calls, row.cost) for row in own] == [
        ("", 1, 1, 0),
        ("USD", 1, 0, 0.25),
    ]
    assert {(row.tenant, row.provider, row.day) for row in everyone} == {
        (tenant, "FAL_STANDARD", last) for tenant in ("acme", "other")
    }
    assert sum(row.calls for row in everyone) == 6
    assert all(row.seconds == pytest.approx(20 * row.calls) for row in everyone)


async def test_what_a_pipeline_has_redrawn_is_counted_at_the_provider_that_redraws(start_mesh: StartMesh) -> None:
    pipeline, faces = enums_pb2.PROVIDER_TYPE_SARTIQ_ULTIMATE_FACE_FIXER, enums_pb2.TASK_TYPE_FACE_ENHANCER
    mesh = await start_mesh(
        served_providers=("LOCAL", "SARTIQ_ULTIMATE_FACE_FIXER", "VERTEX"),
        ultimate_editor="VERTEX",
        provider_limits={"VERTEX": {"failure_threshold": 2}},
    )
    worker = await mesh.worker(queues=("inference",), types=(faces,), providers=(pipeline,), name="p/0")
    task = task_pb2.CreateTask(origin_instance="tests", provider_type=pipeline)
    task.face_enhancer.input_image = f"data:image/png;base64,{encoded(png())}"
    await mesh.create(task)
    [lease] = await worker.lease(1)
    redrawn: dict[str, Any] = {"provider_type": pipeline, "target": "gemini-x"}
    await note(worker, lease, ServiceRequestEffect.SUCCESS, cost=0.5, currency="USD", **redrawn)
    for _ in range(2):
        await note(worker, lease, ServiceRequestEffect.FAILURE, **redrawn)
    assert await gate(mesh, "provider, state, total_calls", "gemini-x") == ("VERTEX", "open", 3)
    used = "SELECT DISTINCT provider_type, sum(calls)::int, sum(cost) FROM provider_usage GROUP BY 1"
    assert await mesh.rows(used) == [("VERTEX", 3, 0.5)]


async def test_request_to_another_provider_than_the_tasks_moves_no_gate(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(**SERVED)
    worker = await caller(mesh)
    await call(mesh)
    [lease] = await worker.lease(1)
    await note(worker, lease, ServiceRequestEffect.FATAL, provider_type=enums_pb2.PROVIDER_TYPE_VERTEX)
    assert await mesh.rows("SELECT key FROM provider_gates WHERE state <> 'closed'") == []
