from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from atelier.events.v1 import events_pb2
from atelier.tasks.v1 import enums_pb2, task_pb2

from services.tasks import events
from services.tasks.domain import TaskRecord, TaskStatus, new_task

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def record_of(workflow: UUID | None, prompt: str = "a dress") -> TaskRecord:
    task = task_pb2.Task()
    task.generation.prompt = prompt
    return new_task(
        task_id=uuid4(),
        tenant="acme",
        task_type="GENERATION",
        priority=0,
        queue_name="inference",
        provider_type="LOCAL",
        now=NOW,
        origin_instance="tests",
        origin_zone=None,
        origin_reference=None,
        workflow_id=workflow,
        webhook_url=None,
        timeout_seconds=60.0,
        warm_keys=(),
        traceparent="",
        spec=b"",
        body=task.SerializeToString(),
    )


def told(record: TaskRecord) -> events_pb2.TaskStatusEvent:
    return events_pb2.TaskStatusEvent.FromString(events.changed(record).payload)


@pytest.mark.parametrize(("workflow", "entity"), [(None, "task"), (uuid4(), "step")])
def test_a_step_of_a_workflow_speaks_on_subjects_of_its_own(workflow: UUID | None, entity: str) -> None:
    record = record_of(workflow)
    done = record._replace(status=TaskStatus.COMPLETED.value, completed_at=NOW)
    assert events.created(record).subject == f"atelier.tasks.v1.{entity}.created"
    assert events.changed(done).subject == f"atelier.tasks.v1.{entity}.completed"


def test_the_end_of_a_step_holds_its_task_and_is_told_at_once() -> None:
    result = task_pb2.TaskResult()
    result.generation.result_image_path = "generations/1.png"
    flow = uuid4()
    done = record_of(flow)._replace(
        status=TaskStatus.COMPLETED.value, completed_at=NOW, version=3, result=result.SerializeToString()
    )
    event = told(done)
    assert (event.task.status, event.task.version) == (enums_pb2.TASK_STATUS_COMPLETED, 3)
    assert (event.task.workflow_id, event.task.generation.prompt) == (str(flow), "a dress")
    assert event.task.generation.result_image_path == "generations/1.png"
    notice = events.step_ended(done)
    assert notice is not None
    assert events_pb2.TaskStatusEvent.FromString(notice) == event


@pytest.mark.parametrize(
    "record",
    [
        record_of(None)._replace(status=TaskStatus.COMPLETED.value, completed_at=NOW),
        record_of(uuid4())._replace(status=TaskStatus.EXECUTING.value),
        record_of(uuid4(), "x" * events.MAX_TOLD_TASK_BYTES)._replace(
            status=TaskStatus.COMPLETED.value, completed_at=NOW
        ),
    ],
    ids=["no step", "not ended", "too large"],
)
def test_what_is_no_end_of_a_step_or_too_large_is_told_without_its_task(record: TaskRecord) -> None:
    assert not told(record).HasField("task")
    assert events.step_ended(record) is None
