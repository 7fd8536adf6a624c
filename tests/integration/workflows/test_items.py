"""Steps with a task for each item of a list, over gRPC."""

import asyncio
from typing import Any

import pytest
from atelier.workflows.v1 import monitoring_service_pb2, workflow_pb2, workflows_service_pb2
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from meshkit.errors import MeshError
from tests.integration.workflows.conftest import Mesh, create, noop

VALUE = {"from_step": "$item", "from_field": "value", "to_field": "payload"}


def each(name: str, *needs: str, items: list[Any], most: int | None = None, **more: Any) -> dict[str, Any]:
    listed: dict[str, Any] = {"items": items} | ({} if most is None else {"max_parallel": most})
    return noop(name, *needs, for_each=listed, **{"input_mappings": [VALUE], **more})


def plain(result: Struct) -> dict[str, Any]:
    return json_format.MessageToDict(result)


async def test_each_item_has_a_task_and_the_results_come_in_order(mesh: Mesh) -> None:
    mesh.worker.held.add("one")
    steps = (
        each("all", items=["one", "two", "three"]),
        # Its list is the first one's results.
        noop(
            "again",
            "all",
            for_each={"from_step": "all", "from_field": "result_path"},
            input_mappings=[{**VALUE, "transform": 'format("again {}")'}],
        ),
        noop(
            "joined",
            "again",
            input_mappings=[
                {"from_step": "all", "from_field": "payload", "to_field": "payload", "transform": 'join("+")'}
            ],
        ),
    )
    made = (await mesh.workflows().CreateWorkflow(create(*steps))).workflow
    assert (made.total_steps, made.current_step) == (3, "all")
    running = await mesh.until(made.id, lambda found: len(mesh.worker.done) == 2)
    assert [item.value.string_value for item in running.steps[0].items] == ["one", "two", "three"]
    assert not running.steps[0].HasField("task_id")
    mesh.worker.held.clear()
    done = await mesh.ended(made.id)
    assert done.status == workflow_pb2.WORKFLOW_STATUS_COMPLETED, done.errors
    assert (done.total_steps, done.completed_steps, done.progress) == (3, 3, 100)
    first = done.steps[0]
    assert first.result["count"] == 3
    assert [one["payload"] for one in plain(first.result)["items"]] == ["one", "two", "three"]
    paths = [f"noops/{item.task_id}/1/{name}" for item, name in zip(first.items, ("one", "two", "three"), strict=True)]
    assert [item.value.string_value for item in done.steps[1].items] == paths
    assert done.final_step_result["payload"] == "one+two+three"
    assert await mesh.task_count() == 7
    detail = await mesh.monitoring().GetMonitoredWorkflow(
        monitoring_service_pb2.GetMonitoredWorkflowRequest(workflow_id=made.id)
    )
    assert [(step.step_id, len(step.items)) for step in detail.steps] == [("all", 3), ("again", 3), ("joined", 0)]
    cleaned = await mesh.workflows().CleanupWorkflow(workflows_service_pb2.CleanupWorkflowRequest(workflow_id=made.id))
    assert (cleaned.cleanup.tasks_cleaned, list(cleaned.cleanup.errors)) == (7, [])


async def test_no_more_items_are_begun_at_once_than_may_be(mesh: Mesh) -> None:
    names = [str(at) for at in range(5)]
    mesh.worker.held.update(names)
    made = (await mesh.workflows().CreateWorkflow(create(each("all", items=names, most=2)))).workflow
    async with asyncio.timeout(60):
        while await mesh.task_count() < 2:  # noqa: ASYNC110 -- of another process
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
    assert await mesh.task_count() == 2
    mesh.worker.held.clear()
    assert (await mesh.ended(made.id)).status == workflow_pb2.WORKFLOW_STATUS_COMPLETED
    assert sorted(mesh.worker.done) == names


async def test_a_resume_makes_only_the_tasks_of_items_that_failed(mesh: Mesh) -> None:
    mesh.worker.failing.add("two")
    step = each("all", items=["one", "two", "three"], most=1, max_retries=1)
    made = (await mesh.workflows().CreateWorkflow(create(step))).workflow
    failed = await mesh.ended(made.id)
    assert failed.status == workflow_pb2.WORKFLOW_STATUS_FAILED
    assert failed.error_message == "all[1]: broken"
    assert failed.steps[0].error_message == "1 of 3 items failed, the first of them all[1]: broken"
    assert [item.retry_count for item in failed.steps[0].items] == [0, 1, 0]
    assert await mesh.task_count() == 4
    mesh.worker.failing.clear()
    await mesh.workflows().ResumeWorkflow(workflows_service_pb2.ResumeWorkflowRequest(workflow_id=made.id))
    done = await mesh.ended(made.id)
    assert done.status == workflow_pb2.WORKFLOW_STATUS_COMPLETED
    assert mesh.worker.done == ["one", "three", "two"]
    assert [one["payload"] for one in plain(done.final_step_result)["items"]] == ["one", "two", "three"]
    assert await mesh.task_count() == 5


async def test_a_cancel_stops_the_tasks_of_all_items_and_begins_no_other(mesh: Mesh) -> None:
    names = [str(at) for at in range(6)]
    mesh.worker.held.update(names)
    stub = mesh.workflows()
    made = (await stub.CreateWorkflow(create(each("all", items=names, most=3)))).workflow
    await mesh.until(made.id, lambda found: sum(item.HasField("task_id") for item in found.steps[0].items) == 3)
    ended = (await stub.CancelWorkflow(workflows_service_pb2.CancelWorkflowRequest(workflow_id=made.id))).workflow
    assert {item.status for item in ended.steps[0].items} == {workflow_pb2.STEP_STATUS_CANCELLED}
    async with asyncio.timeout(60):
        while True:
            async with mesh.tasks.database.connection() as conn:
                rows = await (await conn.execute("SELECT status FROM tasks")).fetchall()
            if rows == [("CANCELLED",)] * 3:
                break
            await asyncio.sleep(0.05)


async def test_lists_of_nothing_are_completed_and_conditions_see_them(mesh: Mesh) -> None:
    steps = (
        each("none", items=[]),
        noop("some", "none", when={"from_step": "none", "from_field": "count", "operator": "greater", "value": 0}),
        noop("end", "none"),
    )
    done = await mesh.ended((await mesh.workflows().CreateWorkflow(create(*steps))).workflow.id)
    assert done.status == workflow_pb2.WORKFLOW_STATUS_COMPLETED
    assert plain(done.steps[0].result) == {"count": 0, "items": []}
    assert done.steps[1].status == workflow_pb2.STEP_STATUS_SKIPPED
    assert mesh.worker.done == [""]


async def test_an_item_that_takes_too_long_is_tried_again_alone(mesh: Mesh) -> None:
    mesh.worker.held.add("slow")
    step = each("all", items=["slow", "fast"], timeout_seconds=4, max_retries=1)
    made = (await mesh.workflows().CreateWorkflow(create(step))).workflow
    await mesh.until(made.id, lambda found: bool(found.steps[0].items) and found.steps[0].items[0].retry_count == 1)
    mesh.worker.held.clear()
    done = await mesh.ended(made.id)
    assert done.status == workflow_pb2.WORKFLOW_STATUS_COMPLETED
    assert done.errors == ["all[0]: The task took longer than 4 s"]
    assert sorted(mesh.worker.done) == ["fast", "slow"]


@pytest.mark.parametrize("count", [0, 201])
async def test_a_list_is_bounded_before_anything_is_stored(mesh: Mesh, count: int) -> None:
    stub = mesh.workflows()
    request = create(each("all", items=[str(at) for at in range(count)]), start=False)
    if not count:
        assert (await stub.CreateWorkflow(request)).workflow.total_steps == 1
        return
    with pytest.raises(MeshError) as raised:
        await stub.CreateWorkflow(request)
    assert [one.path for one in raised.value.violations] == ["workflow.steps[0].for_each.items"]
