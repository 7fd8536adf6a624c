"""Requests to providers: committed before the answer, fenced by the attempt, given to the next attempt."""

import uuid
from typing import Any

import pytest
from atelier.tasks.v1 import enums_pb2, service_requests_pb2, task_pb2, tasks_service_pb2, worker_service_pb2
from atelier.tasks.v1.editing_pb2 import CreateEditingTask
from atelier.tasks.v1.generation_pb2 import CreateGenerationTask
from google.protobuf.struct_pb2 import Struct

from meshkit.errors import ErrorKind, MeshError
from tests.integration.tasks.conftest import Mesh, StartMesh, Worker, age_session, ref

FAL = enums_pb2.PROVIDER_TYPE_FAL_STANDARD
GENERATION = enums_pb2.TASK_TYPE_GENERATION
SENDING = service_requests_pb2.SERVICE_REQUEST_STATE_SENDING
ACCEPTED = service_requests_pb2.SERVICE_REQUEST_STATE_ACCEPTED
DONE = service_requests_pb2.SERVICE_REQUEST_STATE_DONE
FAILED = service_requests_pb2.SERVICE_REQUEST_STATE_FAILED
FAILURE = service_requests_pb2.SERVICE_REQUEST_EFFECT_FAILURE
IGNORED = service_requests_pb2.SERVICE_REQUEST_EFFECT_IGNORED
APP = "fal-ai/flux/dev"


@pytest.fixture
async def mesh(start_mesh: StartMesh) -> Mesh:
    return await start_mesh(served_providers=("LOCAL", "FAL_STANDARD", "FASHN_STANDARD"))


def drawing(**more: Any) -> task_pb2.CreateTask:
    return task_pb2.CreateTask(
        origin_instance="tests",
        provider_type=FAL,
        generation=CreateGenerationTask(prompt="a hat", fal_app_id=APP),
        **more,
    )


async def caller(mesh: Mesh, **more: Any) -> Worker:
    pair = worker_service_pb2.ServedPair(
        task_type=GENERATION, provider_type=FAL, job_kind=worker_service_pb2.JOB_KIND_TASK
    )
    return await mesh.worker(queues=("fal",), pairs=(pair,), **more)


def request(state: service_requests_pb2.ServiceRequestState.ValueType, **more: Any) -> Any:
    more.setdefault("id", str(uuid.uuid4()))
    return service_requests_pb2.ServiceRequest(provider_type=FAL, target=APP, operation="submit", state=state, **more)


async def note(worker: Worker, lease: worker_service_pb2.Lease, what: Any) -> None:
    await worker.stub.NoteServiceRequest(
        worker_service_pb2.NoteServiceRequestRequest(session_id=worker.session, ref=ref(lease), request=what)
    )


async def rows(mesh: Mesh) -> list[Any]:
    return await mesh.rows("SELECT state, service_task_id, ended_at IS NULL FROM service_requests ORDER BY sent_at")


async def test_a_request_that_was_noted_is_committed_and_shows_in_the_task(mesh: Mesh) -> None:
    task = await mesh.create(drawing())
    worker = await caller(mesh)
    [lease] = await worker.lease()
    what = request(SENDING)
    await note(worker, lease, what)
    assert await rows(mesh) == [("SENDING", None, True)]
    assert not (await mesh.get(task.id)).HasField("service_task_id")
    what.state, what.service_task_id = ACCEPTED, "req-1"
    await note(worker, lease, what)
    shown = await mesh.get(task.id)
    assert shown.service_task_id == "req-1"
    assert shown.provider_config.fal_standard.fal_request_id == "req-1"
    assert shown.provider_config.fal_standard.fal_app_id == APP
    assert shown.generation.fal_request_id == "req-1"
    await note(worker, lease, request(DONE, id=what.id, cost=0.025, currency="USD", http_status=200))
    assert await rows(mesh) == [("DONE", "req-1", False)]
    [row] = await mesh.rows("SELECT tenant, attempt, provider_type, target, cost, currency FROM service_requests")
    assert row == ("acme", 1, "FAL_STANDARD", APP, 0.025, "USD")


async def test_a_note_takes_nothing_back_and_may_be_repeated(mesh: Mesh) -> None:
    await mesh.create(drawing())
    worker = await caller(mesh)
    [lease] = await worker.lease()
    what = request(ACCEPTED, service_task_id="req-1")
    for _ in range(2):
        await note(worker, lease, what)
    await note(worker, lease, request(SENDING, id=what.id))
    assert await rows(mesh) == [("ACCEPTED", "req-1", True)]
    for _ in range(2):
        await note(worker, lease, request(FAILED, id=what.id, effect=IGNORED))
    await note(worker, lease, request(DONE, id=what.id))
    await note(worker, lease, what)
    assert await rows(mesh) == [("FAILED", "req-1", False)]


@pytest.mark.parametrize("state", [SENDING, ACCEPTED, DONE])
async def test_a_request_of_a_lost_attempt_that_has_not_failed_is_given_to_the_next(mesh: Mesh, state: Any) -> None:
    await mesh.create(drawing())
    worker = await caller(mesh)
    [lease] = await worker.lease()
    assert not lease.service_requests
    resume = Struct()
    resume.update({"status_url": "https://queue.fal.run/x"})
    open_one = request(state, service_task_id="" if state == SENDING else "req-1", resume=resume)
    await note(worker, lease, request(FAILED, effect=IGNORED))
    await note(worker, lease, open_one)
    await worker.report(lease, 10.0)
    await age_session(mesh, worker)
    await mesh.running.maintenance.expire()
    other = await caller(mesh, name="w/1")
    [again] = await other.lease()
    [left] = again.service_requests
    assert (left.id, left.state, left.service_task_id, left.attempt) == (
        open_one.id,
        state,
        open_one.service_task_id,
        1,
    )
    assert left.resume["status_url"] == "https://queue.fal.run/x"
    assert left.HasField("sent_at")
    # The answer of a poll that was lost is repeated whole.
    [repeated] = await other.lease(repeat=True)
    assert repeated.service_requests == again.service_requests
    with pytest.raises(MeshError) as error:
        await note(worker, lease, request(DONE, id=open_one.id))
    assert error.value.reason == "LEASE_LOST"
    await note(other, again, request(DONE, id=open_one.id))
    assert [state for state, _, _ in await rows(mesh)] == ["FAILED", "DONE"]


async def test_the_end_of_a_request_is_kept_although_its_task_was_cancelled(mesh: Mesh) -> None:
    task = await mesh.create(drawing())
    worker = await caller(mesh)
    [lease] = await worker.lease()
    what = request(ACCEPTED, service_task_id="req-1")
    await note(worker, lease, what)
    await mesh.tasks().CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=task.id))
    answer = await worker.stub.Heartbeat(
        worker_service_pb2.HeartbeatRequest(session_id=worker.session, held=[ref(lease)])
    )
    assert (list(answer.give_up), list(answer.ended)) == ([ref(lease)], [ref(lease)])
    for late in (request(SENDING), request(FAILED, id=what.id, cost=0.5)):
        with pytest.raises(MeshError) as error:
            await note(worker, lease, late)
        assert error.value.reason == "TASK_ENDED"
    assert await mesh.rows("SELECT state, cost FROM service_requests") == [("FAILED", 0.5)]


async def test_an_attempt_that_another_worker_has_did_not_end(mesh: Mesh) -> None:
    await mesh.create(drawing())
    worker = await caller(mesh)
    [lease] = await worker.lease()
    await worker.release(lease)
    answer = await worker.stub.Heartbeat(
        worker_service_pb2.HeartbeatRequest(session_id=worker.session, held=[ref(lease)])
    )
    assert (list(answer.give_up), list(answer.ended)) == ([ref(lease)], [])


async def test_a_request_belongs_to_one_task(mesh: Mesh) -> None:
    await mesh.create(drawing())
    await mesh.create(drawing(), tenant="other")
    worker = await caller(mesh)
    first, second = [(await worker.lease())[0] for _ in range(2)]
    what = request(SENDING)
    await note(worker, first, what)
    what.service_task_id = "stolen"
    with pytest.raises(MeshError) as error:
        await note(worker, second, what)
    assert error.value.kind is ErrorKind.INVALID
    assert await rows(mesh) == [("SENDING", None, True)]
    with pytest.raises(MeshError) as error:
        await note(await caller(mesh, name="w/1", subject="someone"), first, request(SENDING))
    assert error.value.reason == "LEASE_LOST"


async def test_no_tenant_names_sees_or_goes_on_with_anothers_request(mesh: Mesh) -> None:
    task = await mesh.create(drawing())
    worker = await caller(mesh)
    [lease] = await worker.lease()
    await note(worker, lease, request(ACCEPTED, service_task_id="req-1"))
    with pytest.raises(MeshError) as hidden:
        await mesh.get(task.id, "other")
    assert hidden.value.kind is ErrorKind.NOT_FOUND
    named = drawing()
    named.provider_config.fal_standard.fal_request_id = "req-1"
    with pytest.raises(MeshError) as refused:
        await mesh.create(named, tenant="other")
    assert refused.value.violations[0].path == "task.provider_config.fal_standard.fal_request_id"
    as_fallback = task_pb2.CreateTask(origin_instance="tests", generation=CreateGenerationTask(prompt="a hat"))
    as_fallback.fallback_provider_type = FAL
    as_fallback.fallback_provider_config.fal_standard.fal_app_id = APP
    as_fallback.fallback_provider_config.fal_standard.fal_request_id = "req-1"
    with pytest.raises(MeshError) as refused:
        await mesh.create(as_fallback, tenant="other")
    assert refused.value.violations[0].path == "task.fallback_provider_config.fal_standard.fal_request_id"
    theirs = await mesh.create(drawing(), tenant="other")
    update = task_pb2.TaskUpdate(service_task_id="req-1")
    with pytest.raises(MeshError) as refused:
        await mesh.tasks("other").UpdateTask(tasks_service_pb2.UpdateTaskRequest(task_id=theirs.id, update=update))
    assert refused.value.kind is ErrorKind.FORBIDDEN
    # What a lease tells to go on with is what this very task has noted.
    [other] = await worker.lease()
    await worker.fail(other)
    await mesh.execute("UPDATE tasks SET not_before = now() WHERE not_before IS NOT NULL")
    await mesh.running.maintenance.promote()
    [again] = await worker.lease()
    assert (again.job_id, list(again.service_requests)) == (theirs.id, [])


async def test_support_reads_what_a_task_has_asked_of_providers(mesh: Mesh) -> None:
    task = await mesh.create(drawing())
    worker = await caller(mesh)
    [lease] = await worker.lease()
    resume = Struct()
    resume.update({"status_url": "https://queue.fal.run/x?signature=secret"})
    first = request(ACCEPTED, service_task_id="req-1", resume=resume)
    await note(worker, lease, first)
    await note(worker, lease, request(FAILED, id=first.id, http_status=500, message="It broke.", effect=FAILURE))
    await note(worker, lease, request(SENDING))
    asked = tasks_service_pb2.ListServiceRequestsRequest(task_id=task.id)
    answer = await mesh.tasks("ops", ("support",)).ListServiceRequests(asked)
    ended, sending = answer.service_requests
    assert (ended.state, ended.http_status, ended.message, ended.effect) == (FAILED, 500, "It broke.", FAILURE)
    assert (ended.service_task_id, ended.target, ended.attempt, ended.HasField("ended_at")) == ("req-1", APP, 1, True)
    assert (sending.state, sending.HasField("ended_at")) == (SENDING, False)
    assert b"secret" not in answer.SerializeToString()
    with pytest.raises(MeshError) as error:
        await mesh.tasks().ListServiceRequests(asked)
    assert error.value.kind is ErrorKind.FORBIDDEN


async def test_what_it_takes_to_go_on_is_small(mesh: Mesh) -> None:
    await mesh.create(drawing())
    worker = await caller(mesh)
    [lease] = await worker.lease()
    resume = Struct()
    resume.update({"body": "x" * 9000})
    with pytest.raises(MeshError) as error:
        await note(worker, lease, request(SENDING, resume=resume))
    assert error.value.kind is ErrorKind.INVALID
    assert await rows(mesh) == []


async def test_settings_that_no_caller_gave_get_their_defaults_with_the_name(mesh: Mesh) -> None:
    task = await mesh.create(
        task_pb2.CreateTask(
            origin_instance="tests",
            provider_type=enums_pb2.PROVIDER_TYPE_FASHN_STANDARD,
            editing=CreateEditingTask(prompt="wear it", base_image="https://example.com/a.png"),
        )
    )
    pair = worker_service_pb2.ServedPair(
        task_type=enums_pb2.TASK_TYPE_EDITING,
        provider_type=enums_pb2.PROVIDER_TYPE_FASHN_STANDARD,
        job_kind=worker_service_pb2.JOB_KIND_TASK,
    )
    worker = await mesh.worker(queues=("fashn",), pairs=(pair,))
    [lease] = await worker.lease()
    await note(worker, lease, request(ACCEPTED, service_task_id="p-1"))
    shown = (await mesh.get(task.id)).provider_config.fashn_standard
    assert (shown.fashn_task_id, shown.max_image_height, shown.poll_interval) == ("p-1", 2000, 2)
