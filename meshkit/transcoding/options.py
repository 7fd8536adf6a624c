"""How a contract wants to be presented: the options of `atelier.options.v1`, read from descriptors.

Everything here is read once, at start, while codecs, routes and the OpenAPI document are compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from atelier.options.v1 import options_pb2
from buf.validate import validate_pb2
from google.protobuf.descriptor import (
    Descriptor,
    FieldDescriptor,
    MethodDescriptor,
    OneofDescriptor,
)

from meshkit.spelling import ContractError

_FREE_FORM = frozenset({"google.protobuf.Struct", "google.protobuf.ListValue"})


@dataclass(frozen=True, slots=True)
class Flattened:
    """A oneof whose selected message lies flat in its parent under a discriminator.

    Attributes:
        name: Name of the oneof.
        discriminator: The JSON member that names the variant.
        variants: Member field of the oneof by discriminator value.
        required: Whether a request must select one.
    """

    name: str
    discriminator: str
    variants: Mapping[str, FieldDescriptor]
    required: bool

    @property
    def public(self) -> tuple[str, ...]:
        """Discriminator values that the document and error messages show."""
        return tuple(value for value, field in self.variants.items() if not field_json(field).hidden)


def field_json(field: FieldDescriptor) -> options_pb2.FieldJson:
    """Return the presentation of a field."""
    return field.GetOptions().Extensions[options_pb2.field]


def field_rules(field: FieldDescriptor) -> validate_pb2.FieldRules:
    """Return the validation rules of a field."""
    return field.GetOptions().Extensions[validate_pb2.field]


def method_rule(method: MethodDescriptor) -> options_pb2.MethodRule:
    """Return the guard and presentation of a method."""
    return method.GetOptions().Extensions[options_pb2.method]


def json_name(field: FieldDescriptor) -> str:
    """Return the JSON member of a field: its own name, unless an option says otherwise."""
    return field_json(field).name or field.name


def schema_name(message: Descriptor) -> str:
    """Return the name of a message's schema in the OpenAPI document."""
    return message.GetOptions().Extensions[options_pb2.message].schema_name or message.name


def is_repeated(field: FieldDescriptor) -> bool:
    """Tell whether a field is a list or a map."""
    return field.is_repeated


def is_map(field: FieldDescriptor) -> bool:
    """Tell whether a field is a map."""
    return field.message_type is not None and field.is_repeated and field.message_type.GetOptions().map_entry


def is_optional(field: FieldDescriptor) -> bool:
    """Tell whether a field is declared `optional`, which for a message is what makes it nullable in the document."""
    # The compiler puts such a field into a oneof of its own, named after it.
    oneof = field.containing_oneof
    return oneof is not None and oneof.name == f"_{field.name}" and len(oneof.fields) == 1


def prints_when_unset(field: FieldDescriptor) -> bool:
    """Tell whether an unset field prints its empty value: free-form ones do that are not declared `optional`."""
    return nested(field).full_name in _FREE_FORM and not is_optional(field)


def nested(field: FieldDescriptor) -> Descriptor:
    """Return the message type of a field that has one."""
    assert field.message_type is not None, f"{field.full_name} is no message"
    return field.message_type


def prints_null(field: FieldDescriptor) -> bool:
    """Tell whether an empty list or map prints `null`."""
    return field_json(field).empty == options_pb2.EMPTY_NULL


@cache
def flattened(message: Descriptor) -> Flattened | None:
    """Return the oneof of a message that lies flat in it, if there is one.

    Raises:
        ContractError: there are two, or a member of it is no message or names no variant.
    """
    found: Flattened | None = None
    for oneof in message.oneofs:
        discriminator = oneof.GetOptions().Extensions[options_pb2.oneof].discriminator
        if not discriminator:
            continue
        if found is not None:
            raise ContractError(f"{message.full_name}: two oneofs are flattened")
        found = Flattened(
            name=oneof.name,
            discriminator=discriminator,
            variants=MappingProxyType(_variants(oneof)),
            required=oneof.GetOptions().Extensions[validate_pb2.oneof].required,
        )
    return found


def _variants(oneof: OneofDescriptor) -> dict[str, FieldDescriptor]:
    variants: dict[str, FieldDescriptor] = {}
    for field in oneof.fields:
        value = field_json(field).variant
        if not value or field.message_type is None or value in variants:
            raise ContractError(
                f"{field.full_name}: a member of a flattened oneof is a message with a variant of its own"
            )
        variants[value] = field
    return variants


def plain_fields(message: Descriptor) -> list[FieldDescriptor]:
    """Return the fields that are members of a message's JSON object: neither hidden nor a flattened variant."""
    flat = flattened(message)
    members = {field.number for field in flat.variants.values()} if flat else set()
    return [field for field in message.fields if field.number not in members and not field_json(field).hidden]
