"""Members of a task's `config` that steer a local worker: read by the contract's rules, free members left alone.

A task type names the message whose fields these are (`(task_type).steered_by`). The tasks service reads them to refuse
what does not hold, workers to do what they say.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value

from meshkit.errors import MeshError, invalid
from meshkit.validation import apply_defaults, check

# Whole numbers that each kind of field takes; from 2^53 on a JSON number may not be the one that was meant.
_INTEGERS = {FieldDescriptor.CPPTYPE_INT32: (1 << 31) - 1, FieldDescriptor.CPPTYPE_INT64: 1 << 53}


def steering(config: Struct, message: Descriptor, path: str = "config") -> Any:
    """Read the members of `config` that are fields of a message.

    Args:
        config: The task's `config`; its other members are the caller's own.
        message: The message.
        path: Path of `config`, for the error.

    Returns:
        The message, with defaults for what is absent or null.

    Raises:
        MeshError: `INVALID` with each member that does not hold.
    """
    read: Message = message_factory.GetMessageClass(message)()
    for field in message.fields:
        name = field.name
        if name in config.fields and config.fields[name].WhichOneof("kind") not in (None, "null_value"):
            setattr(read, name, _value(field, config.fields[name], f"{path}.{name}"))
    apply_defaults(read)
    try:
        check(read)
    except MeshError as error:
        # A rule of two members has no path of its own.
        moved = tuple(replace(one, path=f"{path}.{one.path}" if one.path else path) for one in error.violations)
        text = f"{moved[0].path}: {moved[0].message}"
        raise MeshError(error.kind, text, reason=error.reason, violations=moved) from None
    return read


def _value(field: FieldDescriptor, value: Value, path: str) -> Any:
    kind = value.WhichOneof("kind")
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if kind == "bool_value":
            return value.bool_value
        raise invalid(path, "Input should be a valid boolean", "bool_type")
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if kind == "string_value":
            return value.string_value
        raise invalid(path, "Input should be a valid string", "string_type")
    if kind != "number_value":
        raise invalid(path, "Input should be a valid number", "float_type")
    if field.cpp_type not in _INTEGERS:
        return value.number_value
    if not value.number_value.is_integer() or abs(value.number_value) > _INTEGERS[field.cpp_type]:
        raise invalid(path, "Input should be a valid integer", "int_type")
    return int(value.number_value)
