"""Workflows over gRPC, from the create to the end."""

import asyncio

import pytest
from atelier.workflows.v1 import monitoring_service_pb2, workflow_pb2, workflows_service_pb2
from google.protobuf import field_mask_pb2

from meshkit.channel import call_metadata
from meshkit.errors import ErrorKind, MeshError
from services.workflows.domain import WorkflowStatus
from services.workflows.postgres.store import PostgresWorkflowStore
from tests.integration.workflows.conftest import Mesh, create, noop

CHAIN = (
    noop("a", config={"payload": "a"}),
    noop(
        "b",
        "a",
        config={"steps": 1},
        input_mappings=[
            {"from_step": "a", "from_field": "result_path", "to_field": "payload", "transform": 'format("from {}")'}
        ],
    ),
    noop("c", "b", config={"payload": "c"}),
)


def ref(workflow_id: str) -> dict[str, str]:
    return {"workflow_id": workflow_id}


async def test_a_chain_runs_in_order_and_hands_results_on(mesh: Mesh) -> None:
    made = (await mesh.workflows().CreateWorkflow(create(*CHAIN))).workflow
    assert made.status == workflow_pb2.WORKFLOW_STATUS_RUNNING
    assert made.current_step == "a"
    done = await mesh.ended(made.id)
    assert done.status == workflow_pb2.WORKFLOW_STATUS_COMPLETED
    first, last = done.steps[0].task_id, done.steps[2].task_id
    assert mesh.worker.done == ["a", f"from noops/{first}/1/a", "c"]
    assert (done.progress, done.completed_steps, done.final_step_id) == (100, 3, "c")
    assert done.final_step_result["result_path"] == f"noops/{last}/1/c"
    assert not done.HasField("current_step")
    assert [step.retry_count for step in done.steps] == [0, 0, 0]


async def test_a_workflow_that_is_not_started_waits(mesh: Mesh) -> None:
    stub = mesh.workflows()
    made = (await stub.CreateWorkflow(create(*CHAIN, start=False))).workflow
    assert made.status == workflow_pb2.WORKFLOW_STATUS_PENDING
    assert await mesh.task_count() == 0
    await stub.StartWorkflow(workflows_service_pb2.StartWorkflowRequest(workflow_id=made.id))
    assert (await mesh.ended(made.id)).status == workflow_pb2.WORKFLOW_STATUS_COMPLETED
    with pytest.raises(MeshError) as raised:
        await stub.StartWorkflow(workflows_service_pb2.StartWorkflowRequest(workflow_id=made.id))
    assert raised.value.kind is ErrorKind.CONFLICT


async def test_an_idempotency_key_creates_one_workflow(mesh: Mesh) -> None:
    stub, key = mesh.workflows(), call_metadata(idempotency_key="once")
    answers = await asyncio.gather(*(stub.CreateWorkflow(create(*CHAIN), metadata=key) for _ in range(4)))
    assert len({answer.workflow.id for answer in answers}) == 1
    with pytest.raises(MeshError) as raised:
        await stub.CreateWorkflow(create(CHAIN[0]), metadata=key)
    assert raised.value.kind is ErrorKind.CONFLICT


async def test_a_definition_that_cannot_run_leaves_nothing_behind(mesh: Mesh) -> None:
    stub = mesh.workflows()
    refine = {"id": "r", "task_type": "TASK_TYPE_EXPERIMENTAL_FAL", "config": {}}
    with pytest.raises(MeshError) as raised:
        await stub.CreateWorkflow(create(refine))
    assert raised.value.kind is ErrorKind.INVALID
    assert raised.value.violations[0].path == "workflow.steps[0].task_type"
    assert (await stub.ListWorkflows(workflows_service_pb2.ListWorkflowsRequest())).total == 0


async def test_a_page_of_large_workflows_is_cut_by_bytes_and_goes_on_by_skip(mesh: Mesh) -> None:
    stub = mesh.workflows()
    created = [
        (await stub.CreateWorkflow(create(noop("a", config={"note": "x" * 50_000}), start=False))).workflow.id
        for _ in range(4)
    ]
    # As with a lower limit: the setting belongs to the process.
    store = mesh.running.executor._store
    assert isinstance(store, PostgresWorkflowStore)
    for page_bytes, most in ((120_000, 2), (1000, 1)):
        store._page_bytes = page_bytes
        seen: list[str] = []
        while True:
            request = workflows_service_pb2.ListWorkflowsRequest(skip=len(seen), limit=100)
            answer = await stub.ListWorkflows(request)
            assert answer.total == 4
            if not answer.workflows:
                break
            assert len(answer.workflows) <= most
            seen += [workflow.id for workflow in answer.workflows]
        assert seen == created[::-1]


async def test_a_failed_step_fails_the_workflow_and_a_resume_reuses_what_was_done(mesh: Mesh) -> None:
    mesh.worker.failing.add("b")
    steps = (
        noop("a", config={"payload": "a"}),
        noop("b", "a", config={"payload": "b"}, max_retries=2),
        noop("c", "b", config={"payload": "c"}),
        noop("d", "a", config={"payload": "d"}),
    )
    made = (await mesh.workflows().CreateWorkflow(create(*steps))).workflow
    failed = await mesh.ended(made.id)
    assert failed.status == workflow_pb2.WORKFLOW_STATUS_FAILED
    assert failed.error_message == "b: broken"
    assert len(failed.errors) == 3
    assert failed.completed_steps == 2
    assert await mesh.task_count() == 5
    mesh.worker.failing.clear()
    await mesh.workflows().ResumeWorkflow(workflows_service_pb2.ResumeWorkflowRequest(workflow_id=made.id))
    done = await mesh.ended(made.id)
    assert done.status == workflow_pb2.WORKFLOW_STATUS_COMPLETED
    assert sorted(mesh.worker.done) == ["a", "b", "c", "d"]
    assert await mesh.task_count() == 7


async def test_a_pause_lets_running_steps_end_and_a_resume_goes_on(mesh: Mesh) -> None:
    mesh.worker.held.add("a")
    stub = mesh.workflows()
    made = (await stub.CreateWorkflow(create(*CHAIN))).workflow
    paused = (await stub.PauseWorkflow(workflows_service_pb2.PauseWorkflowRequest(workflow_id=made.id))).workflow
    assert paused.status == workflow_pb2.WORKFLOW_STATUS_PAUSED
    mesh.worker.held.clear()
    rested = await mesh.until(made.id, lambda found: found.completed_steps == 1)
    assert rested.status == workflow_pb2.WORKFLOW_STATUS_PAUSED
    assert rested.steps[1].status == workflow_pb2.STEP_STATUS_PENDING
    await stub.ResumeWorkflow(workflows_service_pb2.ResumeWorkflowRequest(workflow_id=made.id))
    assert (await mesh.ended(made.id)).status == workflow_pb2.WORKFLOW_STATUS_COMPLETED
    assert await mesh.task_count() == 3


async def test_a_cancel_stops_the_running_tasks(mesh: Mesh) -> None:
    mesh.worker.held.update({"x", "y"})
    steps = (noop("x", config={"payload": "x"}), noop("y", config={"payload": "y"}), noop("z", "x", "y"))
    stub = mesh.workflows()
    made = (await stub.CreateWorkflow(create(*steps))).workflow
    await mesh.until(made.id, lambda found: sum(bool(step.task_id) for step in found.steps) == 2)
    for _ in range(2):
        ended = (await stub.CancelWorkflow(workflows_service_pb2.CancelWorkflowRequest(workflow_id=made.id))).workflow
        assert ended.status == workflow_pb2.WORKFLOW_STATUS_CANCELLED
    assert {step.status for step in ended.steps} == {workflow_pb2.STEP_STATUS_CANCELLED}
    async with asyncio.timeout(60):
        while True:
            async with mesh.tasks.database.connection() as conn:
                rows = await (await conn.execute("SELECT status FROM tasks")).fetchall()
            if {row[0] for row in rows} <= {"CANCELLED"}:
                break
            await asyncio.sleep(0.05)


async def test_a_failure_cancels_the_others_where_it_shall(mesh: Mesh) -> None:
    mesh.worker.held.add("x")
    mesh.worker.failing.add("y")
    steps = (noop("x", config={"payload": "x"}), noop("y", config={"payload": "y"}, max_retries=0))
    made = (await mesh.workflows().CreateWorkflow(create(*steps, config={"on_failure": "cancel"}))).workflow
    failed = await mesh.ended(made.id)
    assert failed.status == workflow_pb2.WORKFLOW_STATUS_FAILED
    assert failed.steps[0].status == workflow_pb2.STEP_STATUS_CANCELLED


async def test_a_cleanup_hides_the_workflow_and_reports_on_every_task(mesh: Mesh) -> None:
    stub = mesh.workflows()
    made = (await stub.CreateWorkflow(create(*CHAIN))).workflow
    await mesh.ended(made.id)
    for _ in range(2):
        cleaned = await stub.CleanupWorkflow(workflows_service_pb2.CleanupWorkflowRequest(workflow_id=made.id))
        assert cleaned.workflow.is_deleted
        assert (cleaned.cleanup.tasks_processed, cleaned.cleanup.tasks_cleaned) == (3, 3)
        assert not cleaned.cleanup.errors
    assert (await stub.ListWorkflows(workflows_service_pb2.ListWorkflowsRequest())).total == 0
    everything = await stub.ListWorkflows(workflows_service_pb2.ListWorkflowsRequest(include_deleted=True))
    assert [one.id for one in everything.workflows] == [made.id]


async def test_a_running_workflow_is_not_cleaned_up(mesh: Mesh) -> None:
    mesh.worker.held.add("a")
    stub = mesh.workflows()
    made = (await stub.CreateWorkflow(create(*CHAIN))).workflow
    with pytest.raises(MeshError) as raised:
        await stub.CleanupWorkflow(workflows_service_pb2.CleanupWorkflowRequest(workflow_id=made.id))
    assert raised.value.kind is ErrorKind.CONFLICT


async def test_an_update_changes_what_it_names_and_null_clears(mesh: Mesh) -> None:
    stub = mesh.workflows()
    made = (await stub.CreateWorkflow(create(*CHAIN, start=False, description="old"))).workflow
    request = workflows_service_pb2.UpdateWorkflowRequest(
        workflow_id=made.id,
        update=workflow_pb2.WorkflowUpdate(name="new"),
        update_mask=field_mask_pb2.FieldMask(paths=["name", "description"]),
    )
    changed = (await stub.UpdateWorkflow(request)).workflow
    assert changed.name == "new"
    assert not changed.HasField("description")


async def test_what_another_tenant_owns_does_not_exist(mesh: Mesh) -> None:
    made = (await mesh.workflows().CreateWorkflow(create(*CHAIN, start=False))).workflow
    other = mesh.workflows("other")
    for call, request in (
        (other.GetWorkflow, workflows_service_pb2.GetWorkflowRequest(workflow_id=made.id)),
        (other.StartWorkflow, workflows_service_pb2.StartWorkflowRequest(workflow_id=made.id)),
        (other.CancelWorkflow, workflows_service_pb2.CancelWorkflowRequest(workflow_id=made.id)),
        (other.CleanupWorkflow, workflows_service_pb2.CleanupWorkflowRequest(workflow_id=made.id)),
    ):
        with pytest.raises(MeshError) as raised:
            await call(request)
        assert raised.value.kind is ErrorKind.NOT_FOUND
    assert (await other.ListWorkflows(workflows_service_pb2.ListWorkflowsRequest())).total == 0


async def test_monitoring_lists_searches_counts_and_orders(mesh: Mesh) -> None:
    stub, monitor = mesh.workflows(), mesh.monitoring()
    backwards = (noop("last", "first"), noop("first"))
    made = (await stub.CreateWorkflow(create(*backwards, name="Autumn lookbook"))).workflow
    await stub.CreateWorkflow(create(noop("only"), start=False, name="Spring"))
    await mesh.ended(made.id)
    found = await monitor.ListMonitoredWorkflows(
        monitoring_service_pb2.ListMonitoredWorkflowsRequest(search="autumn", page_size=1)
    )
    assert (found.total, found.pages, found.items[0].id) == (1, 1, made.id)
    assert found.items[0].duration_ms > 0
    by_name = monitoring_service_pb2.ListMonitoredWorkflowsRequest(sort_by="name", sort_order="asc")
    assert [one.name for one in (await monitor.ListMonitoredWorkflows(by_name)).items] == ["Autumn lookbook", "Spring"]
    stats = await monitor.GetWorkflowStats(monitoring_service_pb2.GetWorkflowStatsRequest())
    assert dict(stats.by_status) == {status: int(status in ("COMPLETED", "PENDING")) for status in WorkflowStatus}
    assert (stats.total_workflows, stats.workflows_last_hour, stats.avg_steps_per_workflow) == (2, 2, 1.5)
    detail = await monitor.GetMonitoredWorkflow(monitoring_service_pb2.GetMonitoredWorkflowRequest(workflow_id=made.id))
    assert [step.step_id for step in detail.steps] == ["first", "last"]


async def test_gates_conditions_and_timeouts_work_together(mesh: Mesh) -> None:
    mesh.worker.held.add("slow")
    steps = (
        noop("a", config={"payload": "a", "steps": 3}),
        noop("gated", "a", config={"payload": "gated"}, requires_approval=True),
        noop("skipped", "a", when={"from_step": "a", "from_field": "steps", "operator": "greater", "value": 3}),
        noop("slow", "gated", config={"payload": "slow"}, timeout_seconds=0.5, max_retries=1),
    )
    stub = mesh.workflows()
    made = (await stub.CreateWorkflow(create(*steps))).workflow
    paused = await mesh.until(made.id, lambda found: found.status == workflow_pb2.WORKFLOW_STATUS_PAUSED)
    assert paused.current_step == "gated"
    assert paused.steps[2].status == workflow_pb2.STEP_STATUS_SKIPPED
    await stub.ResumeWorkflow(workflows_service_pb2.ResumeWorkflowRequest(workflow_id=made.id))
    late = await mesh.until(made.id, lambda found: found.steps[3].retry_count == 1)
    assert late.errors[0] == "slow: The task took longer than 0.5 s"
    failed = await mesh.ended(made.id)
    assert failed.status == workflow_pb2.WORKFLOW_STATUS_FAILED
    assert mesh.worker.done == ["a", "gated"]


async def test_the_end_of_a_workflow_is_handed_to_the_webhooks_once(mesh: Mesh) -> None:
    made = (await mesh.workflows().CreateWorkflow(create(*CHAIN, webhook_url="https://example.com/hook"))).workflow
    await mesh.ended(made.id)
    for _ in range(3):
        await mesh.running.executor.tell_ends()
    async with mesh.tasks.database.connection() as conn:
        cursor = await conn.execute("SELECT traceparent FROM webhook_deliveries WHERE entity_id = %s", (made.id,))
        [(traceparent,)] = await cursor.fetchall()
    assert traceparent.startswith("00-"), "it is sent under the trace of the request that made the workflow"


async def test_a_webhook_inside_the_network_is_refused_at_create_and_update(mesh: Mesh) -> None:
    stub = mesh.workflows()
    with pytest.raises(MeshError) as raised:
        await stub.CreateWorkflow(create(*CHAIN, start=False, webhook_url="http://169.254.169.254/hook"))
    assert [violation.path for violation in raised.value.violations] == ["workflow.webhook_url"]
    made = (await stub.CreateWorkflow(create(*CHAIN, start=False))).workflow
    update = workflow_pb2.WorkflowUpdate(webhook_url="http://10.0.0.1/hook")
    mask = field_mask_pb2.FieldMask(paths=["webhook_url"])
    with pytest.raises(MeshError) as raised:
        await stub.UpdateWorkflow(
            workflows_service_pb2.UpdateWorkflowRequest(workflow_id=made.id, update=update, update_mask=mask)
        )
    assert [violation.path for violation in raised.value.violations] == ["update.webhook_url"]
