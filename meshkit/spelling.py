"""Spelling of enum values: their names in the code and the database, and the texts that JSON shows.

The two differ where the contract says so: the options of `atelier.options.v1` may put an enum into lower case, give a
value a text of its own or hide it from the document. Tables are built once for each enum, on its first use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from atelier.options.v1 import options_pb2
from google.protobuf.descriptor import EnumDescriptor, EnumValueDescriptor

_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class ContractError(Exception):
    """The contracts contradict themselves; raised at start, never while serving."""


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


@cache
def enum_names(enum: EnumDescriptor) -> EnumNames:
    """Return the JSON spelling of an enum: value names without the enum's prefix, in lower case where it says so.

    Raises:
        ContractError: Two values share a spelling.
    """
    lower = enum.GetOptions().Extensions[options_pb2.enum].lower
    by_number: dict[int, str] = {}
    public: list[str] = []
    for value in _specified(enum):
        plain = _without_prefix(enum, value)
        options = value.GetOptions().Extensions[options_pb2.value]
        spelled = options.name or (plain.lower() if lower else plain)
        if spelled in by_number.values():
            raise ContractError(f"{enum.full_name}: two values are spelled {spelled}")
        by_number[value.number] = spelled
        if not options.hidden:
            public.append(spelled)
    by_name = {name: number for number, name in by_number.items()}
    return EnumNames(MappingProxyType(by_number), MappingProxyType(by_name), tuple(public))


def enum_number(enum: EnumDescriptor, spelling: str) -> int:
    """Return the number of an enum value.

    Args:
        enum: The enum.
        spelling: Its JSON spelling, or the value's full name.

    Raises:
        KeyError: No value is spelled so.
    """
    number = enum_names(enum).by_name.get(spelling)
    return int(enum.values_by_name[spelling].number) if number is None else number


@cache
def value_numbers(enum: EnumDescriptor) -> Mapping[str, Any]:
    """Return the numbers of an enum's values by their names without the enum's prefix; "unspecified" is left out.

    These names are what the code and the database hold, whatever JSON shows. The numbers are of the enum's own type,
    which a descriptor does not tell.
    """
    return MappingProxyType({_without_prefix(enum, value): value.number for value in _specified(enum)})


@cache
def value_names(enum: EnumDescriptor) -> Mapping[int, str]:
    """Return the inverse of `value_numbers`."""
    return MappingProxyType({number: name for name, number in value_numbers(enum).items()})


def _specified(enum: EnumDescriptor) -> list[EnumValueDescriptor]:
    return [value for value in enum.values if value.number or not value.name.endswith("_UNSPECIFIED")]


def _without_prefix(enum: EnumDescriptor, value: EnumValueDescriptor) -> str:
    return str(value.name).removeprefix(f"{_WORD_STARTS.sub('_', enum.name).upper()}_")
