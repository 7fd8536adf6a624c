"""Columns of `workflows` and `steps` in the order of the records, and rows as records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from services.workflows.domain import Approval, OnFailure, StepRecord, StepState, WorkflowRecord, WorkflowStatus

WORKFLOW_NAMES = tuple(field.name for field in fields(WorkflowRecord))
STEP_NAMES = tuple(field.name for field in fields(StepRecord))
WORKFLOW = ", ".join(WORKFLOW_NAMES)
STEP = ", ".join(STEP_NAMES)

workflow_values = attrgetter(*WORKFLOW_NAMES)
step_values = attrgetter(*STEP_NAMES)
# Columns of steps that change after the create, with their types as PostgreSQL's catalogue names them.
STEP_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "state": "text",
        "attempt": "int4",
        "task_id": "uuid",
        "task_version": "int8",
        "task_open": "bool",
        "result": "bytea",
        "error_message": "text",
        "retry_count": "int4",
        "started_at": "timestamptz",
        "completed_at": "timestamptz",
        "updated_at": "timestamptz",
        "dispatched_at": "timestamptz",
        "checked_at": "timestamptz",
        "approval": "text",
        "overdue": "bool",
    }
)
# The same for workflows, less the list of errors: in an array of arrays all have one length.
WORKFLOW_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "status": "text",
        "completed_steps": "int4",
        "current_step": "text",
        "error_message": "text",
        "started_at": "timestamptz",
        "completed_at": "timestamptz",
        "updated_at": "timestamptz",
        "version": "int8",
    }
)
_STATUS = WORKFLOW_NAMES.index("status")
_ON_FAILURE = WORKFLOW_NAMES.index("on_failure")
_STATE = STEP_NAMES.index("state")
_APPROVAL = STEP_NAMES.index("approval")


def workflow(row: Sequence[Any]) -> WorkflowRecord:
    """Return a row of `WORKFLOW` as a record."""
    values = list(row)
    values[_STATUS] = WorkflowStatus(values[_STATUS])
    values[_ON_FAILURE] = OnFailure(values[_ON_FAILURE])
    return WorkflowRecord(*values)


def step(row: Sequence[Any]) -> StepRecord:
    """Return a row of `STEP` as a record."""
    values = list(row)
    values[_STATE] = StepState(values[_STATE])
    values[_APPROVAL] = Approval(values[_APPROVAL])
    return StepRecord(*values)
