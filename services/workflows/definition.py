"""What a workflow's definition must hold, checked before anything is stored. Pure.

Every violation points into the request, as `workflow.steps[2].depends_on[0]`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from atelier.tasks.v1 import task_pb2
from atelier.workflows.v1 import workflow_pb2
from google.protobuf.message import Message

from meshkit import errors, validation
from meshkit.catalog import (
    PROVIDERS,
    TASK_TYPES,
    ProviderSpec,
    TaskTypeSpec,
    provider_numbered,
    provider_of_config,
    type_numbered,
)
from meshkit.errors import FieldViolation, MeshError
from meshkit.freeform import FreeFormLimits
from meshkit.provider_settings import NAMED_REQUEST, named_request
from services.workflows import graph, iteration
from services.workflows.building import ON_FAILURE, compose, compose_training
from services.workflows.condition import fault_of
from services.workflows.domain import OnFailure
from services.workflows.fields import (
    TRAINING,
    every_upload,
    inputs_of,
    is_file,
    kind_of,
    kind_of_step,
    plain_struct,
    trains,
)
from services.workflows.items import ITEM
from services.workflows.iteration import ReadableValues
from services.workflows.mapping import TransformError, ValueKind, fits, kind_after, parse

Definition = workflow_pb2.WorkflowStepDefinition
_DEFAULT_LIMITS = FreeFormLimits()
_SINGLE = ("task_type", "provider_config", "fallback_provider_type", "fallback_provider_config")
_OF_TASKS_ALONE = (*_SINGLE, "active_provider_capabilities", "fallback_provider_capabilities")


@dataclass(frozen=True, slots=True)
class ServedCatalog:
    """What the tasks service serves.

    Attributes:
        types: Spellings of the task types.
        listed: Those of them that the documented surface knows.
        capabilities: By provider, what it can do.
        queues: Names of the queues.
    """

    types: frozenset[str]
    listed: tuple[str, ...]
    capabilities: Mapping[str, frozenset[str]]
    queues: frozenset[str]

    @classmethod
    def of(
        cls, types: Sequence[str], capabilities: Mapping[str, Collection[str]], queues: Collection[str]
    ) -> ServedCatalog:
        """Return what is served, from plain collections."""
        return cls(
            frozenset(types),
            tuple(name for name in types if not TASK_TYPES[name].internal),
            MappingProxyType({name: frozenset(values) for name, values in capabilities.items()}),
            frozenset(queues),
        )


def check(
    workflow: workflow_pb2.CreateWorkflow, served: ServedCatalog, limits: FreeFormLimits = _DEFAULT_LIMITS
) -> None:
    """Refuse a definition that cannot be executed.

    Args:
        workflow: As its author describes it; field rules of the contract hold already.
        served: What the tasks service serves.
        limits: What a free-form member of a task may hold.

    Raises:
        MeshError: `INVALID` with every member that does not hold.
    """
    violations = list(_kind_faults(workflow.steps)) or list(_violations(workflow, served, limits))
    if violations:
        raise MeshError(errors.ErrorKind.INVALID, violations[0].message, violations=violations)


def _kind_faults(steps: Sequence[Definition]) -> Iterator[FieldViolation]:
    """Yield the steps that say too little or too much of what they do; without that nothing else can be told."""
    for index, step in enumerate(steps):
        path = f"workflow.steps[{index}]"
        if not trains(step):
            if not step.task_type:
                yield FieldViolation(f"{path}.task_type", "Field required", "missing")
            continue
        for name in _OF_TASKS_ALONE:
            present = step.HasField(name) if name in _SINGLE else len(getattr(step, name))  # type: ignore[arg-type]  # names of the message
            if present:
                yield FieldViolation(f"{path}.{name}", "A step that trains takes no such member", "job_kind")


def shared_config(workflow: workflow_pb2.CreateWorkflow) -> dict[str, Any]:
    """Return the workflow's `config` as JSON values."""
    return plain_struct(workflow.config.SerializeToString())


def on_failure(workflow: workflow_pb2.CreateWorkflow) -> OnFailure:
    """Return what a failed step does to the others."""
    return OnFailure(shared_config(workflow).get(ON_FAILURE, OnFailure.FINISH_RUNNING))


def graph_of(workflow: workflow_pb2.CreateWorkflow) -> dict[str, list[str]]:
    """Return the graph of its steps."""
    return {step.id: list(dict.fromkeys(step.depends_on)) for step in workflow.steps}


def _violations(
    workflow: workflow_pb2.CreateWorkflow, served: ServedCatalog, limits: FreeFormLimits
) -> Iterator[FieldViolation]:
    shared = shared_config(workflow)
    if shared.get(ON_FAILURE, OnFailure.CANCEL) not in set(OnFailure):
        names = " or ".join(OnFailure)
        yield FieldViolation(f"workflow.config.{ON_FAILURE}", f"Input should be {names}", "enum")
    yield from _shared_violations(shared)
    broken = list(_graph_violations(workflow.steps))
    yield from broken
    known = not broken
    above = graph.ancestors(graph_of(workflow)) if known else {}
    by_name = {step.id: step for step in workflow.steps}
    outputs = iteration.outputs_by_step(workflow.steps)
    yield from iteration.count_violations(workflow.steps)
    for index, step in enumerate(workflow.steps):
        path = f"workflow.steps[{index}]"
        reads = ReadableValues(step.id, outputs, iteration.item_kinds(step, by_name, outputs), above.get(step.id))
        yield from _served_violations(step, path, served)
        yield from iteration.violations(step, path, reads)
        yield from _mapping_violations(step, path, reads)
        yield from _condition_violations(step, path, reads)
        yield from _task_violations(step, path, shared, served, limits)


def _graph_violations(steps: Sequence[Definition]) -> Iterator[FieldViolation]:
    first: dict[str, int] = {}
    broken = False
    for index, step in enumerate(steps):
        if step.id in first:
            broken = True
            text = f"Step {step.id!r} is defined already, at place {first[step.id]}"
            yield FieldViolation(f"workflow.steps[{index}].id", text, "duplicate_step")
        first.setdefault(step.id, index)
    for index, step in enumerate(steps):
        for place, needed in enumerate(step.depends_on):
            path = f"workflow.steps[{index}].depends_on[{place}]"
            if needed == step.id:
                broken = True
                yield FieldViolation(path, f"Step {step.id!r} depends on itself", "self_dependency")
            elif needed not in first:
                broken = True
                yield FieldViolation(path, f"There is no step {needed!r}", "unknown_step")
    if broken:
        return
    cycle = graph.find_cycle({step.id: list(step.depends_on) for step in steps})
    if cycle:
        index = first[cycle[0]]
        place = list(steps[index].depends_on).index(cycle[1])
        text = f"Steps depend on each other in a cycle: {' -> '.join(cycle)}"
        yield FieldViolation(f"workflow.steps[{index}].depends_on[{place}]", text, "cycle")


def _served_violations(step: Definition, path: str, served: ServedCatalog) -> Iterator[FieldViolation]:
    name = kind_of_step(step)
    if name != TRAINING and name not in served.types:
        text = f"Tasks of type {name} are not served; this installation serves {', '.join(served.listed)}"
        yield FieldViolation(f"{path}.task_type", text, "task_type_not_served")


def _mapping_violations(step: Definition, path: str, reads: ReadableValues) -> Iterator[FieldViolation]:
    targets: set[str] = set()
    for index, mapping in enumerate(step.input_mappings):
        at = f"{path}.input_mappings[{index}]"
        if mapping.from_step == ITEM:
            fault = iteration.item_violation(step, mapping.from_field, at, reads.item)
            faults = [] if fault is None else [fault]
            source = reads.item.get(mapping.from_field)
        else:
            faults = list(iteration.source_violations(reads, mapping.from_step, mapping.from_field, at))
            source = reads.outputs.get(mapping.from_step, {}).get(mapping.from_field)
        yield from faults
        if mapping.to_field in targets:
            yield FieldViolation(f"{at}.to_field", f"{mapping.to_field} is mapped twice", "duplicate_field")
        targets.add(mapping.to_field)
        if not any(fault.path == f"{at}.from_step" and fault.type == "unknown_step" for fault in faults):
            yield from _kind_violations(mapping, at, source, kind_of_step(step))


def _kind_violations(
    mapping: workflow_pb2.FieldMapping, at: str, source: ValueKind | None, target_type: str
) -> Iterator[FieldViolation]:
    target = inputs_of(target_type).get(mapping.to_field)
    if target is None:
        text = f"A task of type {target_type} takes no {mapping.to_field!r}"
        yield FieldViolation(f"{at}.to_field", text, "unknown_field")
    try:
        calls = parse(mapping.transform) if mapping.transform else ()
        if source is None or target is None:
            return
        kind = kind_after(source, calls)
    except TransformError as error:
        yield FieldViolation(f"{at}.transform", str(error), "transform")
        return
    wanted = kind_of(target)
    if not fits(kind, wanted):
        text = f"{mapping.to_field} takes a {wanted}, {mapping.from_field} gives a {kind}"
        yield FieldViolation(f"{at}.to_field", text, "type_mismatch")


def _condition_violations(step: Definition, path: str, reads: ReadableValues) -> Iterator[FieldViolation]:
    if not step.HasField("when"):
        return
    name, at = step.when.from_step, f"{path}.when"
    yield from iteration.source_violations(reads, name, step.when.from_field, at)
    kind = reads.outputs.get(name, {}).get(step.when.from_field)
    if kind is not None and (fault := fault_of(step.when, kind)):
        yield FieldViolation(f"{at}.value", fault, "condition")


def _task_violations(
    step: Definition, path: str, shared: Mapping[str, Any], served: ServedCatalog, limits: FreeFormLimits
) -> Iterator[FieldViolation]:
    """Yield what the task of the step would be refused for, as far as it is known beforehand."""
    if trains(step):
        yield from _training_violations(step, path, shared, limits)
        return
    task, faults = compose(step, shared, {})
    for fault in faults:
        yield FieldViolation(f"{path}.config.{fault.member}", fault.message, "type_error")
    yield from _provider_violations(step, task, path, served)
    mapped = {mapping.to_field for mapping in step.input_mappings}
    detail = type_numbered(step.task_type).detail
    task.origin_instance = "workflow"
    validation.apply_defaults(task)
    for violation in _rules_broken(task, limits):
        head, _, member = violation.path.partition(".")
        if head != detail:
            yield FieldViolation(f"{path}.config.{violation.path}", violation.message, violation.type)
        elif not member and not mapped:
            # A rule across fields; with some of them unknown it is the tasks service's to judge.
            yield FieldViolation(f"{path}.config", violation.message, violation.type)
        elif member and member.partition(".")[0].partition("[")[0] not in mapped:
            yield FieldViolation(f"{path}.config.{member}", violation.message, violation.type)


def _training_violations(
    step: Definition, path: str, shared: Mapping[str, Any], limits: FreeFormLimits
) -> Iterator[FieldViolation]:
    """Yield what the training of the step would be refused for, as far as it is known beforehand."""
    training, faults = compose_training(step, shared, {})
    for fault in faults:
        yield FieldViolation(f"{path}.config.{fault.member}", fault.message, "type_error")
    mapped = {mapping.to_field for mapping in step.input_mappings}
    validation.apply_defaults(training)
    for violation in _rules_broken(training, limits):
        if violation.path.partition(".")[0].partition("[")[0] not in mapped:
            yield FieldViolation(f"{path}.config.{violation.path}", violation.message, violation.type)


def _rules_broken(task: Message, limits: FreeFormLimits) -> Sequence[FieldViolation]:
    try:
        validation.check(task, limits)
    except MeshError as error:
        return error.violations
    return ()


def _shared_violations(shared: Mapping[str, Any]) -> Iterator[FieldViolation]:
    """Refuse files in the workflow's own `config`: they would be those of every step."""
    for name in sorted(every_upload() & shared.keys()):
        values = shared[name] if isinstance(shared[name], list) else [shared[name]]
        if any(isinstance(one, str) and is_file(one) for one in values):
            message = "must be a path in storage or an address; a file itself belongs into the config of its step"
            yield FieldViolation(f"workflow.config.{name}", message, "inline_file")


def _provider_violations(
    step: Definition, task: task_pb2.CreateTask, path: str, served: ServedCatalog
) -> Iterator[FieldViolation]:
    task_type = type_numbered(step.task_type)
    provider = _provider(task.provider_type, task_type)
    where = "provider_config" if step.HasField("provider_config") else "config.provider_type"
    yield from _unfit_provider(provider, task_type, f"{path}.{where}", served)
    yield from _capability_violations(
        provider, step.active_provider_capabilities, f"{path}.active_provider_capabilities", served
    )
    if step.HasField("provider_config"):
        chosen = provider_of_config(step.provider_config)
        if chosen is not None and chosen is not provider:
            text = f"holds settings of {chosen.name}, the provider is {provider.name}"
            yield FieldViolation(f"{path}.provider_config", text, "provider_config")
    for member in ("provider_config", "fallback_provider_config"):
        if (name := named_request(getattr(step, member))) is not None:
            yield FieldViolation(f"{path}.{member}.{name}", NAMED_REQUEST, "read_only")
    if task.HasField("queue_name") and task.queue_name not in served.queues:
        text = f"Unknown queue {task.queue_name!r}; one of {', '.join(sorted(served.queues))}"
        yield FieldViolation(f"{path}.config.queue_name", text, "unknown_queue")
    if step.HasField("fallback_provider_type"):
        fallback = _provider(step.fallback_provider_type, task_type)
        yield from _unfit_provider(fallback, task_type, f"{path}.fallback_provider_type", served)
        yield from _capability_violations(
            fallback, step.fallback_provider_capabilities, f"{path}.fallback_provider_capabilities", served
        )
    elif step.HasField("fallback_provider_config") or step.fallback_provider_capabilities:
        text = "Field required where a fallback is described"
        yield FieldViolation(f"{path}.fallback_provider_type", text, "missing")


def _unfit_provider(
    provider: ProviderSpec, task_type: TaskTypeSpec, at: str, served: ServedCatalog
) -> Iterator[FieldViolation]:
    if provider.name not in served.capabilities:
        known = ", ".join(sorted(served.capabilities))
        text = f"Provider {provider.name} is not served; this installation serves {known}"
        yield FieldViolation(at, text, "provider_type_not_served")
    elif task_type.name not in provider.tasks:
        text = f"Provider {provider.name} does not execute {task_type.name} tasks"
        yield FieldViolation(at, text, "provider_type_unfit")


def _capability_violations(
    provider: ProviderSpec, names: Iterable[str], path: str, served: ServedCatalog
) -> Iterator[FieldViolation]:
    known = served.capabilities.get(provider.name)
    if known is None:
        return
    for index, name in enumerate(names):
        if name not in known:
            text = f"Provider {provider.name} has no capability {name!r}; it has {', '.join(sorted(known))}"
            yield FieldViolation(f"{path}[{index}]", text, "unknown_capability")


def _provider(number: int, task_type: TaskTypeSpec) -> ProviderSpec:
    return provider_numbered(number) if number else PROVIDERS[task_type.default_provider]
