"""Conditions on results: what a step's `when` says, judged once what it depends on is done. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from atelier.workflows.v1 import workflow_pb2
from google.protobuf import json_format

from services.workflows.domain import StepRecord
from services.workflows.fields import from_text
from services.workflows.items import value_of
from services.workflows.mapping import INTEGER, ValueKind

ORDERED = frozenset({"less", "greater"})
COMPARED = frozenset({"equals", "not_equals"}) | ORDERED

_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = MappingProxyType(
    {
        "equals": lambda found, wanted: bool(found == wanted),
        "not_equals": lambda found, wanted: bool(found != wanted),
        "less": lambda found, wanted: found is not None and bool(found < wanted),
        "greater": lambda found, wanted: found is not None and bool(found > wanted),
    }
)


def holds(condition: bytes, source: StepRecord) -> bool:
    """Whether a condition holds of a result.

    Args:
        condition: The serialized StepCondition, checked.
        source: The step that it names.
    """
    wanted = workflow_pb2.StepCondition.FromString(condition)
    found = value_of(source, wanted.from_field)
    if wanted.operator not in COMPARED:
        return (found is not None) == (wanted.operator != "missing")
    value = json_format.MessageToDict(wanted.value)
    # A whole number that no double holds is written as text.
    return _COMPARE[wanted.operator](found, from_text(value) if isinstance(found, int) else value)


def fault_of(condition: workflow_pb2.StepCondition, kind: ValueKind) -> str:
    """Return what is wrong with a condition on a field of this kind; empty where nothing is."""
    operator, compared = condition.operator, condition.operator in COMPARED
    if compared != condition.HasField("value"):
        return f"{operator} takes a value" if compared else f"{operator} takes no value"
    if operator in ORDERED and not kind.is_number:
        return f"{operator} needs a number, {condition.from_field} is a {kind}"
    value = json_format.MessageToDict(condition.value) if compared else None
    if kind == INTEGER:
        value = from_text(value)
    if operator in ORDERED and (isinstance(value, bool) or not isinstance(value, int | float)):
        return f"{operator} takes a number"
    return ""
