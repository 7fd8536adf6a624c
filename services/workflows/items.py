"""Steps with a task for each item of a list: what the items are, of what kind, and what their results make. Pure.

A mapping of such a step reads its item as the step `$item`, whose fields are `value` (the item), `index` (its place in
the list, from 0) and, where items are objects, `value.NAME` (a member).

Once all items are done, the step's result is `{"count": 3, "items": [...]}` with the items' results in order. Of a
field F that its type of task yields, other steps read the list of all items' F, as if the step yielded it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from atelier.workflows.v1 import workflow_pb2
from google.protobuf import json_format
from google.protobuf.struct_pb2 import ListValue, Struct, Value

from services.workflows.domain import StepRecord
from services.workflows.fields import exact, from_text, kind_of, outputs_of, plain_struct, whole
from services.workflows.mapping import BOOLEAN, INTEGER, NUMBER, OBJECT, STRING, TransformError, ValueKind, apply, parse

ITEM = "$item"
VALUE, INDEX = "value", "index"
MEMBER = "value."
COUNT, ITEMS = "count", "items"
MAX_ITEMS = 200
MAX_ITEMS_IN_ALL = 1000
# Files are named by their paths, not held by items.
MAX_ITEM_BYTES = 8192

_COLLECTED: Mapping[str, ValueKind] = MappingProxyType({COUNT: INTEGER, ITEMS: replace(OBJECT, many=True)})


class ItemsError(ValueError):
    """A list that a step cannot have a task for each item of."""


def outputs(definition: workflow_pb2.WorkflowStepDefinition, task_type: str) -> dict[str, ValueKind]:
    """Return what other steps may read of a step's result, by field.

    Args:
        definition: The step.
        task_type: The type of its tasks.
    """
    plain = {name: kind_of(field) for name, field in outputs_of(task_type).items()}
    if not definition.HasField("for_each"):
        return plain
    # A list of lists is of no kind that a field takes.
    return {name: replace(kind, many=True) for name, kind in plain.items() if not kind.many} | dict(_COLLECTED)


def value_of(step: StepRecord, name: str) -> Any:
    """Return a field of a step's result as JSON; None where it has none.

    Of a step with items the list of all items' values, None in the place of each that has none.
    """
    result = plain_struct(step.result) if step.result is not None else {}
    if step.for_each is None:
        return _exact(step.task_type, name, result.get(name))
    if name in _COLLECTED:
        return result.get(name)
    return [_exact(step.task_type, name, item.get(name)) for item in result.get(ITEMS, ())]


def _exact(task_type: str, name: str, value: Any) -> Any:
    # What a double cannot hold exactly lies in the result as text.
    if kind_of(outputs_of(task_type)[name]).name != INTEGER.name:
        return value
    return [from_text(one) for one in value] if isinstance(value, list) else from_text(value)


def items_of(step: StepRecord, by_name: Mapping[str, StepRecord]) -> list[bytes]:
    """Return the items of a step whose dependencies are done, each as a serialized Value.

    Args:
        step: The step.
        by_name: The steps of its workflow.

    Raises:
        ItemsError: There are too many, the result gives no list, or an item is nothing that a task could be made for.
    """
    assert step.for_each is not None, "a step with items"
    wanted = workflow_pb2.ForEach.FromString(step.for_each)
    if wanted.HasField("items"):
        return [value.SerializeToString() for value in wanted.items.values]
    found = value_of(by_name[wanted.from_step], wanted.from_field)
    if wanted.transform:
        try:
            found = apply(found, parse(wanted.transform))
        except TransformError as error:
            raise ItemsError(f"{wanted.from_step}.{wanted.from_field}: {error}") from None
    # A result leaves an empty list out.
    items = [] if found is None else found
    if len(items) > MAX_ITEMS:
        raise ItemsError(f"{wanted.from_step}.{wanted.from_field} has {len(items)} items; {MAX_ITEMS} are the most")
    for place, item in enumerate(items):
        if item is None:
            raise ItemsError(f"Item {place} of {wanted.from_step} has no {wanted.from_field}")
    return [json_format.ParseDict(exact(item), Value()).SerializeToString() for item in items]


def item_value(step: StepRecord, name: str) -> Any:
    """Return a field of `$item` in the row of an item."""
    if name == INDEX:
        return step.item_index
    assert step.item is not None, "the row of an item"
    value = whole(json_format.MessageToDict(Value.FromString(step.item)))
    return value if name == VALUE else value.get(name.removeprefix(MEMBER))


def collected(items: Sequence[StepRecord]) -> bytes:
    """Return the result of a step whose items are done, as a serialized Struct.

    Args:
        items: Rows of its items, in their order.
    """
    result = Struct()
    result.fields[COUNT].number_value = len(items)
    listed = result.fields[ITEMS].list_value
    listed.SetInParent()
    for item in items:
        struct = Struct.FromString(item.result or b"")
        listed.values.add().struct_value.CopyFrom(struct)
    return result.SerializeToString()


def literal_kinds(items: ListValue) -> tuple[dict[str, ValueKind], list[tuple[int, str]]]:
    """Kinds of the fields of `$item` where the list is given.

    Args:
        items: The list.

    Returns:
        The kinds by field, and what is wrong with items, by their place.
    """
    kinds: dict[str, ValueKind] = {}
    faults: list[tuple[int, str]] = []
    for place, value in enumerate(items.values):
        plain = whole(json_format.MessageToDict(value))
        kind = _literal(plain)
        if kind is None:
            faults.append((place, "Input should be a text, a number, a boolean or an object"))
            continue
        members = plain.items() if isinstance(plain, dict) else ()
        for name, found in ((VALUE, kind), *((MEMBER + key, _member(one)) for key, one in members)):
            if found is None:
                continue  # no field takes it, so that no mapping can name it
            merged = _merged(kinds.get(name), found)
            if merged is None:
                faults.append((place, f"{name} is a {found}, and a {kinds[name]} in an item before"))
            else:
                kinds[name] = merged
    # Of an item that does not exist everything may be read.
    return {**kinds, INDEX: INTEGER} if items.values else {}, faults


def element_kinds(kind: ValueKind, members: Mapping[str, ValueKind]) -> dict[str, ValueKind]:
    """Kinds of the fields of `$item` where the list comes from a result.

    Args:
        kind: Kind of the list.
        members: Kinds of the items' members, where they are known.
    """
    return {
        VALUE: replace(kind, many=False),
        INDEX: INTEGER,
        **{MEMBER + name: member for name, member in members.items()},
    }


def _literal(value: Any) -> ValueKind | None:
    if isinstance(value, bool):
        return BOOLEAN
    if isinstance(value, int):
        return INTEGER
    if isinstance(value, float):
        return NUMBER
    if isinstance(value, str):
        return STRING
    return OBJECT if isinstance(value, dict) else None


def _member(value: Any) -> ValueKind | None:
    if not isinstance(value, list):
        return _literal(value)
    merged: ValueKind | None = None
    for one in value:
        merged = _merged(merged, _literal(one))
        if merged is None:
            return None
    return replace(merged, many=True) if merged is not None else None


def _merged(known: ValueKind | None, found: ValueKind | None) -> ValueKind | None:
    """Return the kind that both are of, if there is one."""
    if found is None or known is None or known == found:
        return found
    numbers = {INTEGER.name, NUMBER.name}
    if known.many == found.many and {known.name, found.name} <= numbers:
        return replace(NUMBER, many=known.many)
    return None
