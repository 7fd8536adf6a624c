"""Between rows and messages of the contract."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from atelier.workflows.v1 import monitoring_service_pb2 as monitoring
from atelier.workflows.v1 import workflow_pb2
from google.protobuf.struct_pb2 import Struct

from meshkit.moments import assign
from meshkit.spelling import value_names, value_numbers
from services.workflows import graph
from services.workflows.domain import StepRecord, StepState, WorkflowRecord, progress
from services.workflows.store import ListedWorkflow, WorkflowSnapshot

STATUS = value_numbers(workflow_pb2.WorkflowStatus.DESCRIPTOR)
STATUS_NAME = value_names(workflow_pb2.WorkflowStatus.DESCRIPTOR)
_STEP = value_numbers(workflow_pb2.StepStatus.DESCRIPTOR)
# That its task is about to be made is the service's own affair.
STEP_STATUS = {**_STEP, StepState.DISPATCHING.value: _STEP[StepState.RUNNING.value]}

_MOMENTS = ("created_at", "updated_at", "started_at", "completed_at", "deleted_at")
_TEXTS = ("description", "current_step", "origin_zone", "origin_reference", "webhook_url", "error_message")


def to_workflow(whole: WorkflowSnapshot) -> workflow_pb2.WorkflowPublic:
    """Return a workflow as callers see it."""
    record = whole.workflow
    message = workflow_pb2.WorkflowPublic(
        suppress_subtask_events=record.suppress_subtask_events,
        is_deleted=record.is_deleted,
        version=record.version,
        steps=[to_step(step, items) for step, items in _with_items(whole)],
    )
    _fill_whole(message, record)
    final = next(step for step in whole.steps if step.step_id == record.final_step_id)
    if final.result is not None:
        message.final_step_result.ParseFromString(final.result)
    return message


def to_step(step: StepRecord, items: Sequence[StepRecord] = ()) -> workflow_pb2.WorkflowStepPublic:
    """Return a step as callers see it.

    Args:
        step: The step.
        items: Rows of its items, where it has some.
    """
    definition = workflow_pb2.WorkflowStepDefinition.FromString(step.definition)
    message = workflow_pb2.WorkflowStepPublic(
        active_provider_capabilities=definition.active_provider_capabilities,
        fallback_provider_capabilities=definition.fallback_provider_capabilities,
    )
    _fill_step(message, step, definition, items)
    _moments(message, step)
    for name in ("provider_config", "fallback_provider_config"):
        if definition.HasField(name):
            getattr(message, name).CopyFrom(getattr(definition, name))
    if definition.HasField("fallback_provider_type"):
        message.fallback_provider_type = definition.fallback_provider_type
    return message


def to_item(listed: ListedWorkflow) -> monitoring.WorkflowListItem:
    """Return a workflow among others."""
    message = monitoring.WorkflowListItem(has_error=listed.has_error)
    _fill_workflow(message, listed)
    _duration(message, listed.started_at, listed.completed_at)
    return message


def to_detail(whole: WorkflowSnapshot) -> monitoring.GetMonitoredWorkflowResponse:
    """Return a workflow as operators see it, its steps in topological order."""
    message = monitoring.GetMonitoredWorkflowResponse()
    _fill_whole(message, whole.workflow)
    _duration(message, whole.workflow.started_at, whole.workflow.completed_at)
    by_name = {step.step_id: (step, items) for step, items in _with_items(whole)}
    for name in graph.topological_order({name: step.depends_on for name, (step, _) in by_name.items()}):
        step, items = by_name[name]
        monitor = message.steps.add()
        _fill_step(monitor, step, workflow_pb2.WorkflowStepDefinition.FromString(step.definition), items)
        _moments(monitor, step)
        _duration(monitor, step.started_at, step.completed_at)
    return message


def _with_items(whole: WorkflowSnapshot) -> list[tuple[StepRecord, list[StepRecord]]]:
    """Return steps in the order of the definition, each with its items in theirs."""
    items: dict[str, list[StepRecord]] = {}
    for step in whole.steps:
        if step.parent is not None:
            items.setdefault(step.parent, []).append(step)
    return [
        (step, sorted(items.get(step.step_id, ()), key=lambda one: one.item_index or 0))
        for step in whole.steps
        if step.parent is None
    ]


def _fill_whole(message: Any, record: WorkflowRecord) -> None:
    """Fill the members of every view of a workflow that is not one among others."""
    _fill_workflow(message, record)
    if record.started_at is not None:
        message.canvas_task_id = str(record.id)
    message.config.CopyFrom(Struct.FromString(record.config))
    message.errors.extend(record.errors)


def _fill_workflow(message: Any, record: WorkflowRecord | ListedWorkflow) -> None:
    """Fill the members that every view of a workflow has, as far as this one has them."""
    has = message.DESCRIPTOR.fields_by_name
    message.id = str(record.id)
    message.name = record.name
    message.status = STATUS[record.status]
    message.total_steps = record.total_steps
    message.completed_steps = record.completed_steps
    message.progress = progress(record.completed_steps, record.total_steps)
    message.final_step_id = record.final_step_id
    message.origin_instance = record.origin_instance
    message.origin_tenant_id = record.tenant
    for name in _TEXTS:
        if name in has and getattr(record, name) is not None:
            setattr(message, name, getattr(record, name))
    _moments(message, record)


def _fill_step(
    message: Any, step: StepRecord, definition: workflow_pb2.WorkflowStepDefinition, items: Sequence[StepRecord]
) -> None:
    message.id = str(step.id)
    message.step_id = step.step_id
    message.task_type = step.task_type
    message.config.CopyFrom(definition.config)
    message.dependencies.extend(step.depends_on)
    message.input_mappings.extend(definition.input_mappings)
    message.max_retries = step.max_retries
    _fill_state(message, step)
    if definition.HasField("for_each"):
        message.for_each.CopyFrom(definition.for_each)
    for item in items:
        told = message.items.add(index=item.item_index)
        told.value.ParseFromString(item.item or b"")
        _fill_state(told, item)
        _moments(told, item)


def _fill_state(message: Any, step: StepRecord) -> None:
    message.status = STEP_STATUS[step.state]
    message.retry_count = step.retry_count
    if step.task_id is not None:
        message.task_id = str(step.task_id)
    if step.result is not None:
        message.result.ParseFromString(step.result)
        message.result.SetInParent()
    if step.error_message is not None:
        message.error_message = step.error_message


def _moments(message: Any, record: object) -> None:
    for name in _MOMENTS:
        value = getattr(record, name, None)
        if value is not None and name in message.DESCRIPTOR.fields_by_name:
            assign(getattr(message, name), value)


def _duration(message: Any, begun: datetime | None, ended: datetime | None) -> None:
    if begun is not None and ended is not None:
        # Earlier releases could write an end before the beginning.
        message.duration_ms = max(0.0, (ended - begun).total_seconds() * 1000)
