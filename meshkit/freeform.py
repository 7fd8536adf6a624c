"""Free-form members of requests (`Struct`, `Value`, `ListValue`): how large they may be, and which numbers they hold.

The gateway asks before it builds the message, services ask again: a caller by gRPC passes no gateway.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import struct_pb2

# A protobuf parser gives up at 100 nested messages, and one level of a Struct costs two or three of them.
MAX_DEPTH = 24
# Numbers of free-form values are doubles; beyond it a double does not hold every whole number.
MAX_WHOLE = 1 << 53
TYPES = frozenset(one.DESCRIPTOR.full_name for one in (struct_pb2.Struct, struct_pb2.Value, struct_pb2.ListValue))

_NOT_FINITE = ("Input should be a finite number", "finite_number")
_NOT_EXACT = (
    "Input should be a number from -(2^53) to 2^53, beyond it digits are lost; write such a number as text",
    "number_not_exact",
)
_PLAIN_KEY = re.compile(r"[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True, slots=True)
class FreeFormLimits:
    """How much one free-form member may hold.

    Attributes:
        max_bytes: Bytes of its encoded message.
        max_elements: Members and items, those inside of others included.
    """

    max_bytes: int = 256 * 1024
    max_elements: int = 10_000

    @property
    def bytes_text(self) -> str:
        """What is wrong with a larger one."""
        return f"Input should take at most {self.max_bytes} bytes"

    @property
    def elements_text(self) -> str:
        """What is wrong with one of more elements."""
        return f"Input should have at most {self.max_elements} members and items in all"


DEPTH_TEXT = f"Input should be nested at most {MAX_DEPTH} levels deep"
_DEFAULT = FreeFormLimits()


@dataclass(frozen=True, slots=True)
class FreeFormFault:
    """What is wrong with a free-form value.

    Attributes:
        path: Where inside the value, as a violation's path goes on.
        message: What is wrong, for the caller.
        kind: The violation's `type`.
    """

    path: str
    message: str
    kind: str


def number_fault(number: float) -> tuple[str, str] | None:
    """Return what is wrong with a number and the violation's type; None where nothing is."""
    if not math.isfinite(number):
        return _NOT_FINITE
    return _NOT_EXACT if abs(number) > MAX_WHOLE else None


def json_fault(value: Any, limits: FreeFormLimits) -> FreeFormFault | None:
    """Return why a JSON value is larger than a free-form member may be, as far as that shows before it is built.

    Args:
        value: The value.
        limits: What it may hold.
    """
    elements = size = 0
    level = [value]
    while level:
        inner: list[Any] = []
        for one in level:
            if type(one) is dict:
                elements += len(one)
                size += sum(map(len, one))
                inner.extend(one.values())
            elif type(one) is list:
                elements += len(one)
                inner.extend(one)
            elif type(one) is str:
                size += len(one)
            if elements > limits.max_elements:
                return FreeFormFault("", limits.elements_text, "too_long")
            if size > limits.max_bytes:
                return FreeFormFault("", limits.bytes_text, "too_large")
        level = inner  # levels are counted where the message is built
    return None


def size_fault(message: Any, limits: FreeFormLimits) -> FreeFormFault | None:
    """Return whether a free-form message takes too many bytes."""
    if message.ByteSize() > limits.max_bytes:
        return FreeFormFault("", limits.bytes_text, "too_large")
    return None


def faults(message: Any, limits: FreeFormLimits = _DEFAULT) -> Iterator[FreeFormFault]:
    """Yield what is wrong with a free-form message.

    Args:
        message: A `Struct`, `Value` or `ListValue`.
        limits: What it may hold.
    """
    if (large := size_fault(message, limits)) is not None:
        yield large
        return
    found: list[FreeFormFault] = []
    elements = 0
    # The level of each value is kept beside it: a recursion costs more, and its depth is the caller's.
    waiting: list[tuple[Any, str, int]] = [(message, "", 0)]
    while waiting:
        one, path, depth = waiting.pop()
        if depth > MAX_DEPTH:
            yield FreeFormFault("", DEPTH_TEXT, "too_deep")
            return
        name = one.DESCRIPTOR.name
        kind = one.WhichOneof("kind") if name == "Value" else None
        if kind == "number_value":
            fault = number_fault(one.number_value)
            if fault is not None:
                found.append(FreeFormFault(path, *fault))
        elif name == "Struct" or kind == "struct_value":
            fields = (one if kind is None else one.struct_value).fields
            elements += len(fields)
            waiting.extend((item, path + member(key), depth + 1) for key, item in fields.items())
        elif name == "ListValue" or kind == "list_value":
            values = (one if kind is None else one.list_value).values
            elements += len(values)
            waiting.extend((item, f"{path}[{index}]", depth + 1) for index, item in enumerate(values))
        if elements > limits.max_elements:
            yield FreeFormFault("", limits.elements_text, "too_long")
            return
    yield from reversed(found)


def member(key: str) -> str:
    """Return how a violation's path goes on to a member of a free-form object."""
    return f".{key}" if _PLAIN_KEY.fullmatch(key) else f"[{json.dumps(key, ensure_ascii=False)}]"
