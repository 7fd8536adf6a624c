"""From a step and the results before it to the task that it becomes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atelier.tasks.v1 import task_pb2
from atelier.training.v1 import training_pb2
from atelier.workflows.v1 import workflow_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.struct_pb2 import Struct

from meshkit.catalog import provider_of_config, type_numbered
from services.workflows.domain import StepRecord, WorkflowRecord
from services.workflows.fields import (
    TRAINING,
    UnfitValueError,
    every_input,
    inputs_of,
    plain_struct,
    set_field,
)
from services.workflows.items import ITEM, item_value, value_of
from services.workflows.mapping import TransformError, apply, parse

ON_FAILURE = "on_failure"
# Fields of every task that a step's `config` may set beside those of its type.
COMMON = ("priority", "queue_name", "provider_type")


class BuildError(ValueError):
    """A step's task cannot be made of the present results."""


@dataclass(frozen=True, slots=True)
class BuildFault:
    """A member of a step's `config` that its task does not take."""

    member: str
    message: str


def compose(
    definition: workflow_pb2.WorkflowStepDefinition, shared: Mapping[str, Any], mapped: Mapping[str, Any]
) -> tuple[task_pb2.CreateTask, list[BuildFault]]:
    """Return a task of a definition.

    Members of `config` that are neither of the type nor of every task go into the task's free `config`, as do those of
    the shared one unless another type has a field of that name.

    Args:
        definition: The step.
        shared: The workflow's `config`; the step's own wins.
        mapped: Fields that earlier steps gave; they win over both.

    Returns:
        The task and the members that it did not take.
    """
    task_type = type_numbered(definition.task_type)
    inputs = inputs_of(task_type.name)
    task = task_pb2.CreateTask()
    detail = getattr(task, task_type.detail)
    detail.SetInParent()
    own = plain_struct(definition.config.SerializeToString())
    common = {
        name: value
        for name, value in shared.items()
        if name != ON_FAILURE and (name in inputs or name in COMMON or name not in every_input())
    }
    faults: list[BuildFault] = []
    free: dict[str, Any] = {}
    for name, value in {**common, **own, **mapped}.items():
        field = inputs.get(name)
        target: Any = detail
        if field is None and name in COMMON:
            field, target = task.DESCRIPTOR.fields_by_name[name], task
        if field is not None:
            _put(target, field, value, faults)
        elif name == "config" and isinstance(value, dict):
            free = {**free, **value}
        else:
            free[name] = value
    if free:
        config = Struct()
        config.update(free)
        task.config.CopyFrom(config)
    _set_provider(task, definition)
    return task, faults


def compose_training(
    definition: workflow_pb2.WorkflowStepDefinition, shared: Mapping[str, Any], mapped: Mapping[str, Any]
) -> tuple[training_pb2.CreateTraining, list[BuildFault]]:
    """Return the training of a definition, as `compose` does a task; members that a training lacks are faults."""
    inputs = inputs_of(TRAINING)
    training = training_pb2.CreateTraining()
    own = plain_struct(definition.config.SerializeToString())
    common = {name: value for name, value in shared.items() if name in inputs}
    faults: list[BuildFault] = []
    for name, value in {**common, **own, **mapped}.items():
        if name in inputs:
            _put(training, inputs[name], value, faults)
        else:
            faults.append(BuildFault(name, "A training has no such member"))
    return training, faults


def _put(target: Any, field: FieldDescriptor, value: Any, faults: list[BuildFault]) -> None:
    try:
        set_field(target, field, value)
    except UnfitValueError as fault:
        faults.append(BuildFault(str(field.name), str(fault)))


def _set_provider(task: task_pb2.CreateTask, definition: workflow_pb2.WorkflowStepDefinition) -> None:
    if definition.HasField("provider_config"):
        task.provider_config.CopyFrom(definition.provider_config)
        chosen = provider_of_config(definition.provider_config)
        if chosen is not None and not task.HasField("provider_type"):
            task.provider_type = chosen.number
    task.active_provider_capabilities.extend(definition.active_provider_capabilities)
    if definition.HasField("fallback_provider_type"):
        task.fallback_provider_type = definition.fallback_provider_type
    if definition.HasField("fallback_provider_config"):
        task.fallback_provider_config.CopyFrom(definition.fallback_provider_config)
    task.fallback_provider_capabilities.extend(definition.fallback_provider_capabilities)


def task_of(workflow: WorkflowRecord, step: StepRecord, steps: Sequence[StepRecord]) -> task_pb2.CreateTask:
    """Return the task of a step whose dependencies are done.

    Args:
        workflow: The workflow.
        step: The step, or an item of one.
        steps: All of its steps.

    Raises:
        BuildError: A result before it does not give what the step needs.
    """
    definition, mapped = _given(step, steps)
    task, faults = compose(definition, plain_struct(workflow.config), mapped)
    if faults:
        raise BuildError(f"{faults[0].member}: {faults[0].message}")
    task.origin_instance = workflow.origin_instance
    task.origin_tenant_id = workflow.tenant
    if workflow.origin_zone is not None:
        task.origin_zone = workflow.origin_zone
    if workflow.origin_reference is not None:
        task.origin_reference = workflow.origin_reference
    if not workflow.suppress_subtask_events and workflow.webhook_url is not None:
        task.webhook_url = workflow.webhook_url
    return task


def training_of(workflow: WorkflowRecord, step: StepRecord, steps: Sequence[StepRecord]) -> training_pb2.CreateTraining:
    """Return the training of a step whose dependencies are done, as `task_of` does a task.

    Raises:
        BuildError: A result before it does not give what the step needs.
    """
    definition, mapped = _given(step, steps)
    training, faults = compose_training(definition, plain_struct(workflow.config), mapped)
    if faults:
        raise BuildError(f"{faults[0].member}: {faults[0].message}")
    training.origin_instance = workflow.origin_instance
    training.origin_tenant_id = workflow.tenant
    if workflow.origin_zone is not None:
        training.origin_zone = workflow.origin_zone
    if not workflow.suppress_subtask_events and workflow.webhook_url is not None:
        training.webhook_url = workflow.webhook_url
    return training


def _given(step: StepRecord, steps: Sequence[StepRecord]) -> tuple[workflow_pb2.WorkflowStepDefinition, dict[str, Any]]:
    """Return the definition of a step, and the fields that earlier steps give it."""
    by_name = {one.step_id: one for one in steps}
    described = step if step.parent is None else by_name[step.parent]
    definition = workflow_pb2.WorkflowStepDefinition.FromString(described.definition)
    mapped: dict[str, Any] = {}
    for mapping in definition.input_mappings:
        try:
            value = _mapped(mapping, step, by_name)
        except TransformError as error:
            raise BuildError(f"{mapping.from_step}.{mapping.from_field}: {error}") from None
        if value is not None:
            mapped[mapping.to_field] = value
    return definition, mapped


def _mapped(mapping: workflow_pb2.FieldMapping, step: StepRecord, by_name: Mapping[str, StepRecord]) -> Any:
    if mapping.from_step == ITEM:
        value = item_value(step, mapping.from_field)
    else:
        value = value_of(by_name[mapping.from_step], mapping.from_field)
        if isinstance(value, list) and None in value:
            raise TransformError(f"item {value.index(None)} has none")
    return apply(value, parse(mapping.transform)) if mapping.transform else value
