"""Fields of the task types, read from the contract: which there are, of what kind, how JSON becomes one. Pure."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from atelier.tasks.v1 import task_pb2, worker_service_pb2
from atelier.training.v1 import training_pb2
from atelier.workflows.v1 import workflow_pb2
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from meshkit.catalog import TASK_TYPES, Form, type_name
from meshkit.freeform import MAX_WHOLE
from meshkit.spelling import enum_names, enum_number
from meshkit.staging import STAGING_SCHEME
from services.workflows.mapping import BOOLEAN, INTEGER, NUMBER, OBJECT, STRING, ValueKind

_INTEGERS = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_UINT64,
    }
)
_NUMBERS = frozenset({FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT})
# What a double cannot hold is written as text; 64 bits have 19 digits.
_WHOLE_TEXT = re.compile(r"-?[0-9]{1,19}")

_MAX_PATH = 1024  # characters of a path in storage


# What a step that trains has in the place of a task type.
TRAINING = "TRAINING"
# Inputs of a training that take a file itself.
TRAINING_UPLOADS = ("source_images",)
# Of a training's result: what may be large, and says nothing to a step.
_LEFT_OUT = ("logs",)


class UnfitValueError(ValueError):
    """A JSON value that a field does not take."""


def trains(step: workflow_pb2.WorkflowStepDefinition) -> bool:
    """Whether a step trains, in place of making a task."""
    return step.job_kind == worker_service_pb2.JOB_KIND_TRAINING


def kind_of_step(step: workflow_pb2.WorkflowStepDefinition) -> str:
    """Name of the type of a step's task, or that it trains."""
    return TRAINING if trains(step) else type_name(step.task_type)


@cache
def inputs_of(task_type: str) -> dict[str, FieldDescriptor]:
    """Fields of a type's Create message, by name."""
    if task_type == TRAINING:
        return dict(training_pb2.CreateTraining.DESCRIPTOR.fields_by_name)
    return _members(task_pb2.CreateTask.DESCRIPTOR, task_type)


@cache
def outputs_of(task_type: str) -> dict[str, FieldDescriptor]:
    """Fields of a type's public message, by name."""
    if task_type == TRAINING:
        shown = training_pb2.TrainingTask.DESCRIPTOR.fields_by_name
        return {name: field for name, field in shown.items() if name not in _LEFT_OUT}
    return _members(task_pb2.Task.DESCRIPTOR, task_type)


@cache
def every_input() -> frozenset[str]:
    """Names of the inputs of all types."""
    return frozenset(field for name in TASK_TYPES for field in inputs_of(name))


@cache
def every_upload() -> frozenset[str]:
    """Names of the inputs of all types, and of trainings, that take a file itself."""
    return frozenset(TRAINING_UPLOADS).union(
        source.field
        for spec in TASK_TYPES.values()
        for image in spec.inputs
        for source in image.sources
        if Form.DATA in source.accepts
    )


def is_file(text: str) -> bool:
    """Whether a text of such an input is a file for sure: short base64 may be a path as well."""
    return text[:5].lower() == "data:" or text.startswith(STAGING_SCHEME) or len(text) > _MAX_PATH


def _members(owner: Descriptor, task_type: str) -> dict[str, FieldDescriptor]:
    message = owner.fields_by_name[TASK_TYPES[task_type].detail].message_type
    assert message is not None, "details are messages"
    return dict(message.fields_by_name)


def kind_of(field: FieldDescriptor) -> ValueKind:
    """Kind of a field's value."""
    many = bool(field.is_repeated)
    if field.message_type is not None:
        return ValueKind(OBJECT.name, many and not field.message_type.GetOptions().map_entry)
    if field.enum_type is not None:
        return ValueKind(str(field.enum_type.name), many)
    if field.cpp_type in _INTEGERS:
        return ValueKind(INTEGER.name, many)
    if field.cpp_type in _NUMBERS:
        return ValueKind(NUMBER.name, many)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return ValueKind(BOOLEAN.name, many)
    return ValueKind(STRING.name, many)


def set_field(message: Message, field: FieldDescriptor, value: Any) -> None:
    """Put a JSON value into a field; None leaves it unset.

    Raises:
        UnfitValueError: The field does not take it.
    """
    if value is None:
        return
    name = field.name
    try:
        if field.message_type is not None:
            json_format.ParseDict({name: value}, message)
        elif field.is_repeated:
            if not isinstance(value, list):
                raise UnfitValueError("Input should be a valid list")
            getattr(message, name).extend(_scalar(field, one) for one in value)
        else:
            setattr(message, name, _scalar(field, value))
    except json_format.ParseError:
        raise UnfitValueError(f"Input should be a valid {kind_of(field)}") from None


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if field.enum_type is not None:
        return _enum(field.enum_type, value)
    kind = ValueKind(kind_of(field).name)
    if kind == STRING and isinstance(value, str):
        return value
    if kind == BOOLEAN and isinstance(value, bool):
        return value
    if kind == INTEGER:
        value = from_text(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if kind == NUMBER:
            return float(value)
        if kind == INTEGER and (isinstance(value, int) or value.is_integer()):
            low, high = (-(2**31), 2**31) if field.cpp_type == FieldDescriptor.CPPTYPE_INT32 else (-(2**63), 2**63)
            if low <= int(value) < high:
                return int(value)
    raise UnfitValueError(f"Input should be a valid {kind}")


def from_text(value: Any) -> Any:
    """Return the whole number that a text is; any other value as it is."""
    return int(value) if isinstance(value, str) and _WHOLE_TEXT.fullmatch(value) else value


def exact(value: Any) -> Any:
    """Return JSON values with the whole numbers that a double cannot hold as text."""
    if isinstance(value, int) and abs(value) > MAX_WHOLE:
        return str(value)
    if isinstance(value, dict):
        return {name: exact(one) for name, one in value.items()}
    return [exact(one) for one in value] if isinstance(value, list) else value


def _enum(enum: EnumDescriptor, value: Any) -> int:
    try:
        return enum_number(enum, value)
    except KeyError:
        names = ", ".join(enum_names(enum).by_name)
        raise UnfitValueError(f"Input should be one of {names}") from None


def result_of(task: task_pb2.Task, task_type: str) -> Struct:
    """Return the members of a task's type as JSON; unset ones are left out."""
    result = Struct()
    result.update(_plain(getattr(task, TASK_TYPES[task_type].detail)))
    return result


def result_of_training(training: training_pb2.TrainingTask) -> Struct:
    """Return the members of a training as JSON; unset ones are left out."""
    result = Struct()
    result.update({name: value for name, value in _plain(training).items() if name not in _LEFT_OUT})
    return result


def _plain(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.enum_type is not None:
            names = enum_names(field.enum_type).by_number
            found[field.name] = [names[one] for one in value] if field.is_repeated else names[value]
        elif field.message_type is not None:
            found[field.name] = json_format.MessageToDict(message, preserving_proto_field_name=True)[field.name]
        elif field.is_repeated:
            found[field.name] = exact(list(value))
        else:
            found[field.name] = exact(value)
    return found


def plain_struct(data: bytes) -> dict[str, Any]:
    """Return a serialized Struct as JSON values; whole numbers are integers."""
    found: dict[str, Any] = whole(json_format.MessageToDict(Struct.FromString(data)))
    return found


def whole(value: Any) -> Any:
    """JSON values with whole numbers as integers, as far as a double holds them exactly."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_WHOLE:
        return int(value)
    if isinstance(value, dict):
        return {name: whole(one) for name, one in value.items()}
    if isinstance(value, list):
        return [whole(one) for one in value]
    return value
