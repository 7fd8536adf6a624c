"""Rows of workflows for tests that need no database."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any
from uuid import UUID

from atelier.workflows.v1 import workflow_pb2

from services.workflows import graph
from services.workflows.domain import OnFailure, StepRecord, StepState, WorkflowRecord, WorkflowStatus, step_row_id

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ID = UUID("6c2b2377-1491-4cdc-80f0-70bebb0dbe92")


def workflow(steps: int = 1, final: str = "a", **changes: Any) -> WorkflowRecord:
    values: dict[str, Any] = {
        "id": ID,
        "tenant": "acme",
        "name": "pipeline",
        "description": None,
        "status": WorkflowStatus.PENDING,
        "on_failure": OnFailure.FINISH_RUNNING,
        "config": b"",
        "suppress_subtask_events": True,
        "origin_instance": "tests",
        "origin_zone": None,
        "origin_reference": None,
        "webhook_url": None,
        "total_steps": steps,
        "completed_steps": 0,
        "current_step": None,
        "final_step_id": final,
        "error_message": None,
        "errors": [],
        "started_at": None,
        "completed_at": None,
        "created_at": NOW,
        "updated_at": NOW,
        "is_deleted": False,
        "deleted_at": None,
        "version": 1,
        "traceparent": "",
    }
    return WorkflowRecord(**{**values, **changes})


def step(name: str, depends_on: Sequence[str] = (), position: int = 0, **changes: Any) -> StepRecord:
    values: dict[str, Any] = {
        "id": step_row_id(ID, name),
        "workflow_id": ID,
        "step_id": name,
        "position": position,
        "task_type": "NOOP",
        "definition": b"",
        "depends_on": list(depends_on),
        "state": StepState.PENDING,
        "attempt": 0,
        "task_id": None,
        "task_version": 0,
        "task_open": False,
        "result": None,
        "error_message": None,
        "retry_count": 0,
        "max_retries": 0,
        "started_at": None,
        "completed_at": None,
        "created_at": NOW,
        "updated_at": NOW,
        "dispatched_at": None,
        "checked_at": None,
    }
    return StepRecord(**{**values, **changes})


def for_each(items: Sequence[Any], max_parallel: int = 2) -> bytes:
    """The list of a step with items."""
    wanted = workflow_pb2.ForEach(max_parallel=max_parallel)
    wanted.items.SetInParent()
    wanted.items.extend(items)
    return wanted.SerializeToString()


def rows(
    shape: Mapping[str, Sequence[str]],
    *,
    on_failure: OnFailure = OnFailure.FINISH_RUNNING,
    max_retries: int = 0,
    lists: Mapping[str, tuple[int, int]] = MappingProxyType({}),
) -> tuple[WorkflowRecord, tuple[StepRecord, ...]]:
    """A workflow of this graph that waits for its start; `lists` gives steps so many items, so many of them at once."""
    each = {name: for_each([f"{name}-{at}" for at in range(count)], most) for name, (count, most) in lists.items()}
    steps = tuple(
        step(name, needs, at, max_retries=max_retries, for_each=each.get(name))
        for at, (name, needs) in enumerate(shape.items())
    )
    return workflow(len(steps), graph.topological_order(shape)[-1], on_failure=on_failure), steps
