"""Free-form members of tasks as JSON for a provider.

A `Struct` has doubles alone. Whole numbers go out as integers: an application that asks for `num_images: 1` refuses
`1.0`.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.struct_pb2 import ListValue, Struct, Value


def members_of(struct: Struct, *, without: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the members of a free-form field.

    Args:
        struct: The field.
        without: Names that are left out, at the top.
    """
    return {name: _plain(value) for name, value in struct.fields.items() if name not in without}


def _plain(value: Value) -> Any:
    kind = value.WhichOneof("kind")
    match kind:
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return members_of(value.struct_value)
        case "list_value":
            return _items(value.list_value)
        case _:
            return None


def _items(values: ListValue) -> list[Any]:
    return [_plain(value) for value in values.values]
