"""Events as the JSON that receivers of webhooks get: spelled as the gateway spells every message.

Only what events are made of is known here: texts, numbers, enums, moments and free-form objects, and lists of these. A
contract test compares each event with what the gateway prints of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import orjson
from atelier.options.v1 import options_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from meshkit.freeform import MAX_WHOLE
from meshkit.spelling import enum_names

_Print = Callable[[Any], Any]


def encode(event: Message) -> bytes:
    """Return an event as JSON: every member that is not hidden, unset ones as null."""
    return orjson.dumps({name: read(event) for name, read in _readers(event.DESCRIPTOR)})


@cache
def _readers(message: Descriptor) -> list[tuple[str, _Print]]:
    shown = (one for one in message.fields if not one.GetOptions().Extensions[options_pb2.field].hidden)
    return [(one.name, _reader(one)) for one in shown]


def _reader(field: FieldDescriptor) -> _Print:
    name, show = field.name, _printer(field)
    if field.is_repeated:
        null = field.GetOptions().Extensions[options_pb2.field].empty == options_pb2.EMPTY_NULL
        return lambda event: [show(one) for one in getattr(event, name)] or (None if null else [])
    if not field.has_presence:
        return lambda event: show(getattr(event, name))
    return lambda event: show(getattr(event, name)) if event.HasField(name) else None


def _printer(field: FieldDescriptor) -> _Print:
    if field.enum_type is not None:
        return enum_names(field.enum_type).by_number.get
    if field.message_type is None:
        return lambda value: value
    return {"google.protobuf.Timestamp": _moment, "google.protobuf.Struct": _object}[field.message_type.full_name]


def _moment(value: Any) -> str:
    return f"{value.ToDatetime().isoformat('T', 'milliseconds')}Z"


def _object(value: Any) -> dict[str, Any]:
    return {key: _value(item) for key, item in value.fields.items()}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return _object(value.struct_value)
    if kind == "list_value":
        return [_value(item) for item in value.list_value.values]
    if kind == "number_value":
        return _number(value.number_value)
    return getattr(value, kind) if kind in ("string_value", "bool_value") else None


def _number(number: float) -> float | int | None:
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and abs(number) <= MAX_WHOLE else number
