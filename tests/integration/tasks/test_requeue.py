"""Failed tasks made again by an operator: one new task of the same request follows each."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from atelier.tasks.v1 import enums_pb2, jobs_service_pb2, task_pb2
from atelier.tasks.v1 import monitoring_service_pb2 as pb
from atelier.tasks.v1.jobs_service_pb2_grpc import JobsServiceStub
from atelier.tasks.v1.monitoring_service_pb2_grpc import TaskMonitoringServiceStub

from meshkit.errors import ErrorKind, MeshError
from services.tasks.retention.domain import RetentionKind
from tests.integration.tasks.conftest import Mesh, noop


async def requeue(mesh: Mesh, *ids: str, scope: str = "operator", **more: Any) -> pb.RequeueTasksResponse:
    stub: Any = mesh.channel(mesh.token("ops", (scope,))).stub(TaskMonitoringServiceStub)
    answer = await stub.RequeueTasks(pb.RequeueTasksRequest(task_ids=ids, **more))
    assert isinstance(answer, pb.RequeueTasksResponse)
    return answer


async def failed(mesh: Mesh, tenant: str = "acme", **members: Any) -> task_pb2.Task:
    task = await mesh.create(noop(**members), tenant)
    worker = await mesh.worker(name=f"w/{task.id}")
    [lease] = await worker.lease()
    await worker.fail(lease, retryable=False)
    await worker.close()
    return task


async def test_a_failed_task_is_followed_by_one_of_the_same_request(mesh: Mesh) -> None:
    task = await failed(
        mesh,
        noop={"steps": 7},
        priority=5,
        origin_reference="order 7",
        origin_zone="eu",
        webhook_url="https://example.com/hook",
    )
    before = await mesh.get(task.id)
    counted = await requeue(mesh, task.id, dry_run=True)
    assert (counted.matched, list(counted.requeued)) == (1, [])
    answer = await requeue(mesh, task.id)
    [made] = answer.requeued
    assert (answer.matched, made.task_id) == (1, task.id)
    after = await mesh.get(made.new_task_id)
    assert after.status == enums_pb2.TASK_STATUS_PENDING
    assert (after.noop.steps, after.priority, after.origin_reference, after.origin_zone) == (7, 5, "order 7", "eu")
    told = "SELECT webhook_url, queue_name, tenant FROM tasks WHERE id = %s"
    assert await mesh.rows(told, made.new_task_id) == await mesh.rows(told, task.id)
    assert await mesh.get(task.id) == before, "a task that has failed stays so"
    worker = await mesh.worker()
    [lease] = await worker.lease()
    assert lease.job_id == made.new_task_id
    await worker.complete(lease)
    assert (await mesh.get(made.new_task_id)).status == enums_pb2.TASK_STATUS_COMPLETED


async def test_repeated_and_at_once_it_makes_no_second_one(mesh: Mesh) -> None:
    tasks = [(await failed(mesh)).id for _ in range(3)]
    answers = await asyncio.gather(*(requeue(mesh) for _ in range(4)), requeue(mesh, *tasks))
    assert len({one.new_task_id for answer in answers for one in answer.requeued}) == 3
    assert await mesh.rows("SELECT count(*) FROM tasks") == [(6,)]
    again = await requeue(mesh)
    assert (again.matched, list(again.requeued), list(again.refused)) == (0, [], [])


async def test_a_filter_chooses(mesh: Mesh) -> None:
    ours, theirs = (await failed(mesh)).id, (await failed(mesh, "other")).id
    await mesh.execute("UPDATE tasks SET error_category = 'RESOURCE' WHERE id = %s", theirs)
    await mesh.create()

    async def matching(**more: Any) -> int:
        return (await requeue(mesh, dry_run=True, **more)).matched

    assert await matching() == 2
    assert await matching(limit=1) == 1
    assert await matching(tenant="acme") == 1
    assert await matching(error_category=enums_pb2.ERROR_CATEGORY_RESOURCE) == 1
    assert await matching(task_type=enums_pb2.TASK_TYPE_EDITING) == 0
    assert await matching(provider_type=enums_pb2.PROVIDER_TYPE_LOCAL) == 2
    answer = await requeue(mesh, error_category=enums_pb2.ERROR_CATEGORY_RESOURCE)
    assert [one.task_id for one in answer.requeued] == [theirs]
    assert await mesh.rows("SELECT tenant FROM tasks WHERE id = %s", answer.requeued[0].new_task_id) == [("other",)]
    assert ours not in {one.task_id for one in answer.requeued}


async def test_all_are_reached_in_pages_and_an_interrupted_run_goes_on(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.tasks.monitoring.requeues._PAGE", 3)
    monkeypatch.setattr("services.tasks.monitoring.requeues._MOST_LOOKED_AT", 4)
    tasks = [(await failed(mesh)).id for _ in range(11)]
    await mesh.execute("UPDATE tasks SET error_category = 'RESOURCE' WHERE id = ANY(%s::uuid[])", tasks[:2])

    async def pages(**more: Any) -> list[pb.RequeueTasksResponse]:
        found = [await requeue(mesh, **more)]
        while found[-1].HasField("next_cursor"):
            found.append(await requeue(mesh, cursor=found[-1].next_cursor, **more))
        return found

    assert [one.matched for one in await pages(dry_run=True)] == [4, 4, 3]
    assert [one.matched for one in await pages(dry_run=True, limit=2)] == [2, 2, 2, 2, 2, 1]
    rare = await pages(dry_run=True, error_category=enums_pb2.ERROR_CATEGORY_RESOURCE)
    assert [one.matched for one in rare] == [0, 0, 2], "pages that hold none are passed"
    first = await requeue(mesh)
    assert [one.task_id for one in first.requeued] == tasks[:6:-1], "the newest first"
    rest = await pages()
    assert [one.matched for one in rest] == [0, 4, 3]
    assert {one.task_id for page in rest for one in page.requeued} == set(tasks[:7])
    assert sum(one.matched for one in await pages()) == 0
    with pytest.raises(MeshError) as refused:
        await requeue(mesh, cursor="f" * 16 + "-" + "0" * 32)
    assert refused.value.kind is ErrorKind.INVALID


async def test_what_cannot_be_made_again_is_told(mesh: Mesh) -> None:
    waits, step, unknown = (await failed(mesh)).id, (await failed(mesh)).id, str(uuid4())
    await mesh.execute("UPDATE tasks SET workflow_id = %s WHERE id = %s", uuid4(), step)
    pending = (await mesh.create()).id
    answer = await requeue(mesh, waits, step, unknown, pending)
    assert [one.task_id for one in answer.requeued] == [waits]
    assert {one.task_id: one.reason for one in answer.refused} == {
        step: "It is the step of a workflow: resume that",
        unknown: "There is no such task",
        pending: "It is PENDING",
    }
    assert (await requeue(mesh)).matched == 0, "steps are left out of filters"


async def test_inputs_of_a_failed_task_stay_for_the_one_that_follows_it(mesh: Mesh) -> None:
    with_inputs, without = await failed(mesh), await failed(mesh)
    named = task_pb2.CreateTask(origin_reference=f"noops/{with_inputs.id}/inputs/0.png").SerializeToString()
    await mesh.execute("UPDATE tasks SET spec = spec || %s WHERE id = %s", named, with_inputs.id)
    made = (await requeue(mesh, with_inputs.id, without.id)).requeued
    jobs = mesh.channel(mesh.token("", ("mesh",))).stub(JobsServiceStub)
    await jobs.HoldTasks(jobs_service_pb2.HoldTasksRequest(tenant="acme", task_ids=[with_inputs.id]))
    held = "SELECT task_id::text FROM task_holds WHERE held_until > now() + interval '6 days'"
    assert await mesh.rows(held) == [(with_inputs.id,)]
    await mesh.execute(
        "UPDATE tasks SET created_at = created_at - interval '9 days', completed_at = completed_at - interval '9 days'"
    )
    await mesh.running.retention.set_rule(RetentionKind.TASKS, "*", 8)
    while await mesh.running.retention.prunings[RetentionKind.TASKS].run_once():
        pass
    left = {row[0] for row in await mesh.rows("SELECT id::text FROM tasks")}
    assert left == {with_inputs.id, *(one.new_task_id for one in made)}


async def test_only_an_operator_may(mesh: Mesh) -> None:
    for scope in ("support", "write"):
        with pytest.raises(MeshError) as error:
            await requeue(mesh, scope=scope)
        assert error.value.kind is ErrorKind.FORBIDDEN
