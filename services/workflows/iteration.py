"""What the `for_each` of a step must hold, and of what kind its items are. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from atelier.workflows.v1 import workflow_pb2

from meshkit.errors import FieldViolation
from services.workflows.fields import kind_of, kind_of_step, outputs_of
from services.workflows.items import (
    ITEM,
    ITEMS,
    MAX_ITEM_BYTES,
    MAX_ITEMS,
    MAX_ITEMS_IN_ALL,
    MEMBER,
    VALUE,
    element_kinds,
    literal_kinds,
    outputs,
)
from services.workflows.mapping import TransformError, ValueKind, kind_after, parse

Definition = workflow_pb2.WorkflowStepDefinition
Outputs = Mapping[str, Mapping[str, ValueKind]]


def outputs_by_step(steps: Sequence[Definition]) -> dict[str, dict[str, ValueKind]]:
    """Return what may be read of each step's result, by the steps' names."""
    return {step.id: outputs(step, kind_of_step(step)) for step in steps}


@dataclass(frozen=True, slots=True)
class ReadableValues:
    """What a step may read.

    Attributes:
        step_id: The step.
        outputs: Of each step's result, by the steps' names.
        item: Of its item, where it has some.
        above: The steps that it depends on; None where that cannot be told.
    """

    step_id: str
    outputs: Outputs
    item: Mapping[str, ValueKind]
    above: frozenset[str] | None


def violations(step: Definition, path: str, reads: ReadableValues) -> Iterator[FieldViolation]:
    """Yield what is wrong with a step's `for_each`.

    Args:
        step: The step.
        path: Where it stands in the request.
        reads: What it may read.
    """
    if not step.HasField("for_each"):
        return
    wanted, at = step.for_each, f"{path}.for_each"
    if wanted.HasField("items"):
        for name in ("from_step", "from_field", "transform"):
            if wanted.HasField(name):
                yield FieldViolation(f"{at}.{name}", "The list is given in items already", "for_each")
        yield from _literal_violations(wanted, f"{at}.items")
        return
    for name in ("from_step", "from_field"):
        if not wanted.HasField(name):  # type: ignore[arg-type]  # names of the message
            yield FieldViolation(f"{at}.{name}", "Field required where items gives no list", "missing")
            return
    yield from source_violations(reads, wanted.from_step, wanted.from_field, at)
    kind = reads.outputs.get(wanted.from_step, {}).get(wanted.from_field)
    try:
        calls = parse(wanted.transform) if wanted.transform else ()
        if kind is None:
            return
        kind = kind_after(kind, calls)
    except TransformError as error:
        yield FieldViolation(f"{at}.transform", str(error), "transform")
        return
    if not kind.many:
        text = f"for_each takes a list, {wanted.from_field} gives a {kind}"
        yield FieldViolation(f"{at}.from_field", text, "type_mismatch")


def count_violations(steps: Sequence[Definition]) -> Iterator[FieldViolation]:
    """Whether the given lists have too many items together."""
    count = sum(len(step.for_each.items.values) for step in steps)
    if count > MAX_ITEMS_IN_ALL:
        text = f"Its lists have {count} items in all; {MAX_ITEMS_IN_ALL} are the most"
        yield FieldViolation("workflow.steps", text, "too_many_items")


def source_violations(reads: ReadableValues, source: str, field: str, at: str) -> Iterator[FieldViolation]:
    """Yield what is wrong with a reference from a step to a field of another one's result.

    Args:
        reads: What the step may read.
        source: The step whose result is read.
        field: The field of it.
        at: Where `from_step` and `from_field` stand.
    """
    if source not in reads.outputs:
        yield FieldViolation(f"{at}.from_step", f"There is no step {source!r}", "unknown_step")
        return
    if reads.above is not None and source not in reads.above:
        text = f"Step {reads.step_id!r} does not depend on {source!r}, directly or through others"
        yield FieldViolation(f"{at}.from_step", text, "not_an_ancestor")
    if field not in reads.outputs[source]:
        yield FieldViolation(f"{at}.from_field", f"Step {source!r} yields no {field!r}", "unknown_field")


def item_kinds(step: Definition, steps: Mapping[str, Definition], known: Outputs) -> dict[str, ValueKind]:
    """Return what a step may read of `$item`, by field; empty without items, or where their list is wrong.

    Args:
        step: The step.
        steps: All steps, by their names.
        known: What may be read of each step.
    """
    wanted = step.for_each
    if not step.HasField("for_each"):
        return {}
    if wanted.HasField("items"):
        return literal_kinds(wanted.items)[0]
    kind = known.get(wanted.from_step, {}).get(wanted.from_field)
    try:
        kind = kind_after(kind, parse(wanted.transform)) if kind is not None and wanted.transform else kind
    except TransformError:
        return {}
    if kind is None or not kind.many:
        return {}
    source = steps[wanted.from_step]
    collected = source.HasField("for_each") and wanted.from_field == ITEMS and not wanted.transform
    members = outputs_of(kind_of_step(source)).items() if collected else ()
    return element_kinds(kind, {name: kind_of(field) for name, field in members})


def item_violation(step: Definition, field: str, at: str, kinds: Mapping[str, ValueKind]) -> FieldViolation | None:
    """Return what is wrong with a mapping from a step's item.

    Args:
        step: The step.
        field: Field of `$item` that is read.
        at: Where the mapping stands.
        kinds: What may be read of it.
    """
    if not step.HasField("for_each"):
        return FieldViolation(f"{at}.from_step", f"Only a step with for_each has an {ITEM}", "unknown_step")
    if kinds and field not in kinds:
        members = ", ".join(sorted(kinds)) if len(kinds) < 20 else f"{VALUE}, index and {MEMBER}NAME"
        return FieldViolation(f"{at}.from_field", f"{ITEM} has no {field!r}; it has {members}", "unknown_field")
    return None


def _literal_violations(wanted: workflow_pb2.ForEach, at: str) -> Iterator[FieldViolation]:
    count = len(wanted.items.values)
    if count > MAX_ITEMS:
        yield FieldViolation(at, f"List should have at most {MAX_ITEMS} items, not {count}", "too_many_items")
        return
    for place, value in enumerate(wanted.items.values):
        if value.ByteSize() > MAX_ITEM_BYTES:
            yield FieldViolation(f"{at}[{place}]", f"must not be larger than {MAX_ITEM_BYTES} bytes", "too_large")
    for place, text in literal_kinds(wanted.items)[1]:
        yield FieldViolation(f"{at}[{place}]", text, "type_error")
