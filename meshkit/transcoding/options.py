"""How a contract wants to be presented: the options of `atelier.options.v1`, read from descriptors.

Everything here is read once, at start, while codecs, routes and the OpenAPI document are compiled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from atelier.options.v1 import options_pb2
from buf.validate import validate_pb2
from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    EnumValueDescriptor,
    FieldDescriptor,
    MethodDescriptor,
    OneofDescriptor,
)

_FREE_FORM = frozenset({"google.protobuf.Struct", "google.protobuf.ListValue"})


class ContractError(Exception):
    """The contracts cannot be presented as they stand; raised at start, never while serving."""


@dataclass(frozen=True, slots=True)
class EnumNames:
    """Both directions of an enum's JSON spelling.

    Attributes:
        by_number: Spelling of every value but the zero value that means "unspecified".
        by_name: The inverse.
        public: Spellings that the OpenAPI document and error messages show.
    """

    by_number: Mapping[int, str]
    by_name: Mapping[str, int]
    public: tuple[str, ...]


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


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


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
def enum_names(enum: EnumDescriptor) -> EnumNames:
    """Return the JSON spelling of an enum: value names without the enum's prefix, in lower case where it says so.

    Raises:
        ContractError: two values share a spelling.
    """
    prefix = _snake(enum.name).upper() + "_"
    lower = enum.GetOptions().Extensions[options_pb2.enum].lower
    by_number: dict[int, str] = {}
    public: list[str] = []
    for value in enum.values:
        if value.number == 0 and value.name.endswith("_UNSPECIFIED"):
            continue
        spelled = _value_name(value, prefix, lower=lower)
        if spelled in by_number.values():
            raise ContractError(f"{enum.full_name}: two values are spelled {spelled}")
        by_number[value.number] = spelled
        if not value.GetOptions().Extensions[options_pb2.value].hidden:
            public.append(spelled)
    by_name = {name: number for number, name in by_number.items()}
    return EnumNames(MappingProxyType(by_number), MappingProxyType(by_name), tuple(public))


def _value_name(value: EnumValueDescriptor, prefix: str, *, lower: bool) -> str:
    chosen = value.GetOptions().Extensions[options_pb2.value].name
    if chosen:
        return chosen
    plain = value.name.removeprefix(prefix)
    return plain.lower() if lower else plain


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
