import re
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any
from uuid import uuid4

from atelier.tasks.v1 import task_pb2

from services.tasks import domain
from services.tasks.convert import CATEGORY, KIND, OUTCOME, STATUS, to_lease, to_task
from services.tasks.domain import TaskRecord, new_task

CreateTask: Any = task_pb2.CreateTask
Task: Any = task_pb2.Task
TaskResult: Any = task_pb2.TaskResult
MIGRATION = import_module("services.tasks.migrations.versions.0001_tasks")


def record(**changes: object) -> TaskRecord:
    task = new_task(
        task_id=uuid4(),
        tenant="acme",
        task_type="GENERATION",
        priority=3,
        queue_name="inference",
        provider_type="LOCAL",
        now=datetime(2026, 1, 2, tzinfo=UTC),
        origin_instance="tests",
        origin_zone=None,
        origin_reference=None,
        workflow_id=None,
        webhook_url=None,
        timeout_seconds=60,
        warm_keys=(),
        traceparent="",
        spec=CreateTask(generation={"prompt": "a dress"}).SerializeToString(),
        body=Task(generation={"prompt": "a dress", "seed": 4}).SerializeToString(),
    )
    return task._replace(**changes)  # type: ignore[arg-type]  # names of the record's fields


def _checked(column: str) -> list[set[str]]:
    sets = re.findall(rf"CHECK \({column} IN \(([^)]*)\)", " ".join(MIGRATION.STATEMENTS))
    return [set(re.findall(r"'(\w+)'", found)) for found in sets]


def test_enums_of_contract_python_and_sql_agree() -> None:
    assert set(domain.TaskStatus) == set(STATUS)
    assert _checked("status") == [set(domain.TaskStatus)]
    assert set(domain.ErrorCategory) == set(CATEGORY)
    assert _checked("error_category") == [set(domain.ErrorCategory)]
    assert set(domain.AttemptOutcome) == set(OUTCOME)
    assert _checked("outcome") == [set(domain.AttemptOutcome)]
    assert set(domain.JobKind) == set(KIND)
    assert _checked("kind") == [set(domain.JobKind)]


def test_waiting_task_has_neither_times_nor_errors() -> None:
    task = to_task(record())
    for name in ("started_at", "completed_at", "executor_type", "error_category", "origin_zone", "deleted_at"):
        assert not task.HasField(name)
    assert list(task.errors) == []
    assert task.celery_task_id == task.id
    assert task.generation.prompt == "a dress"


def test_result_is_laid_over_the_inputs() -> None:
    result = TaskResult(generation={"result_image_path": "generations/x/1/image.png"})
    task = to_task(record(result=result.SerializeToString()))
    assert task.generation.result_image_path == "generations/x/1/image.png"
    assert task.generation.seed == 4


def test_result_of_another_type_is_not_shown() -> None:
    task = to_task(record(result=TaskResult(noop={"result_path": "x"}).SerializeToString()))
    assert task.WhichOneof("detail") == "generation"


def test_lease_names_its_prefix_and_limit() -> None:
    task = record(attempt=2, timeout_seconds=1.5)
    lease = to_lease(task)
    assert lease.result_prefix == f"generations/{task.id}/2/"
    assert lease.timeout.ToTimedelta() == timedelta(seconds=1.5)
    assert lease.spec.generation.prompt == lease.task.generation.prompt
