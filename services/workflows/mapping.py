"""Transforms of a value on its way from one step's result to another's input: parsed, typed, applied. Pure.

A transform is one call or several, joined by `|` and applied from left to right:

    first             first element of a list
    index(2)          an element of a list, from 0; negative ones count from the end
    join(", ")        elements of a list as one text
    format("a {}")    a text with the value in the place of `{}`
    to_list           a list of the one value
    default("none")   this value where there is none
    scale(0.5)        a number multiplied; a whole one is rounded

Arguments are JSON. Without a value (null) every transform but `default` yields none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

MAX_CALLS = 10


class TransformError(ValueError):
    """A transform that cannot be parsed, does not fit its value's type, or fails on the given value."""


@dataclass(frozen=True, slots=True)
class ValueKind:
    """Type of a value.

    Attributes:
        name: `string`, `integer`, `number`, `boolean`, `object`, or the name of an enum.
        many: Whether it is a list of them.
    """

    name: str
    many: bool = False

    @property
    def is_number(self) -> bool:
        """Whether it is one number."""
        return not self.many and self.name in {"integer", "number"}

    @property
    def is_scalar(self) -> bool:
        """Whether it is one value that can be written as text."""
        return not self.many and self.name != "object"

    def __str__(self) -> str:
        return f"list of {self.name}" if self.many else self.name


STRING, INTEGER, NUMBER, BOOLEAN, OBJECT = (
    ValueKind(name) for name in ("string", "integer", "number", "boolean", "object")
)
_PLAIN = {kind.name for kind in (STRING, INTEGER, NUMBER, BOOLEAN, OBJECT)}


def fits(source: ValueKind, target: ValueKind) -> bool:
    """Whether a value of one kind can stand where another is asked for."""
    if source.many != target.many:
        return False
    if source.name == target.name or (source.name, target.name) == ("integer", "number"):
        return True
    # The value of an enum is its spelling.
    return target.name == "string" and source.name not in _PLAIN


@dataclass(frozen=True, slots=True)
class TransformCall:
    """One transform with its argument, if it takes one."""

    name: str
    argument: Any = None


def parse(text: str) -> tuple[TransformCall, ...]:
    """Read a transform.

    Args:
        text: As its author wrote it.

    Raises:
        TransformError: It is unknown or malformed.
    """
    calls: list[TransformCall] = []
    rest = text.strip()
    while True:
        call, rest = _one(rest)
        calls.append(call)
        if len(calls) > MAX_CALLS:
            raise TransformError(f"has more than {MAX_CALLS} parts")
        if not rest:
            return tuple(calls)
        if not rest.startswith("|"):
            raise TransformError(f"expected | before {rest[:20]!r}")
        rest = rest[1:].strip()


def _one(text: str) -> tuple[TransformCall, str]:
    end = 0
    while end < len(text) and (text[end].isalnum() or text[end] == "_"):
        end += 1
    name, rest = text[:end], text[end:].lstrip()
    rule = _RULES.get(name)
    if rule is None:
        raise TransformError(f"unknown transform {name or text[:20]!r}; one of {', '.join(_RULES)}")
    if not rest.startswith("("):
        if rule.takes is not None:
            raise TransformError(f"{name} takes an argument, as in {rule.example}")
        return TransformCall(name), rest
    try:
        argument, length = json.JSONDecoder().raw_decode(rest[1:].lstrip())
    except (json.JSONDecodeError, RecursionError):
        raise TransformError(f"the argument of {name} is not JSON, as in {rule.example}") from None
    tail = rest[1:].lstrip()[length:].lstrip()
    if not tail.startswith(")"):
        raise TransformError(f"{name} takes one argument, as in {rule.example}")
    if rule.takes is None:
        raise TransformError(f"{name} takes no argument")
    rule.takes(argument)
    return TransformCall(name, argument), tail[1:].strip()


def kind_after(kind: ValueKind, calls: Sequence[TransformCall]) -> ValueKind:
    """Kind of what transforms make of a value.

    Args:
        kind: Kind of the value.
        calls: The transforms.

    Raises:
        TransformError: One of them does not take such a value.
    """
    for call in calls:
        kind = _RULES[call.name].typed(kind, call.argument)
    return kind


def apply(value: Any, calls: Sequence[TransformCall]) -> Any:
    """Return the value after transforms.

    Args:
        value: As JSON has it; None where there is none.
        calls: Transforms that fit its kind.

    Raises:
        TransformError: The value does not allow it, such as an index that a list does not reach.
    """
    for call in calls:
        if value is None and call.name != "default":
            continue
        value = _RULES[call.name].applied(value, call.argument)
    return value


def _element(kind: ValueKind, _argument: Any) -> ValueKind:
    if not kind.many:
        raise TransformError(f"needs a list, the value is {kind}")
    return replace(kind, many=False)


def _joined(kind: ValueKind, _argument: Any) -> ValueKind:
    if not kind.many or kind.name == "object":
        raise TransformError(f"join needs a list of texts or numbers, the value is {kind}")
    return STRING


def _formatted(kind: ValueKind, _argument: Any) -> ValueKind:
    if not kind.is_scalar:
        raise TransformError(f"format needs one text or number, the value is {kind}")
    return STRING


def _listed(kind: ValueKind, _argument: Any) -> ValueKind:
    if kind.many:
        raise TransformError("to_list needs one value, it is a list already")
    return replace(kind, many=True)


def _defaulted(kind: ValueKind, argument: Any) -> ValueKind:
    values = argument if kind.many and isinstance(argument, list) else [argument]
    if isinstance(argument, list) != kind.many or not all(_is_a(kind.name, value) for value in values):
        raise TransformError(f"the default {json.dumps(argument)} is no {kind}")
    return kind


def _scaled(kind: ValueKind, _argument: Any) -> ValueKind:
    if not kind.is_number:
        raise TransformError(f"scale needs a number, the value is {kind}")
    return kind


def _is_a(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if isinstance(value, int):
        return name in {"integer", "number"}
    if isinstance(value, float):
        return name == "number"
    if isinstance(value, dict):
        return name == "object"
    return isinstance(value, str) and name not in {"integer", "number", "boolean", "object"}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _index(value: Any, argument: Any) -> Any:
    if not -len(value) <= argument < len(value):
        raise TransformError(f"index({argument}) is beyond a list of {len(value)}")
    return value[argument]


def _first(value: Any, _argument: Any) -> Any:
    if not value:
        raise TransformError("first of an empty list")
    return value[0]


def _scale(value: Any, argument: Any) -> Any:
    # A whole number that no double holds is text where it came through an item.
    value = int(value) if isinstance(value, str) else value
    scaled = value * argument
    return round(scaled) if isinstance(value, int) else scaled


def _whole(argument: Any) -> None:
    if isinstance(argument, bool) or not isinstance(argument, int):
        raise TransformError("index takes a whole number")


def _a_text(argument: Any) -> None:
    if not isinstance(argument, str):
        raise TransformError("takes a text in double quotes")


def _a_template(argument: Any) -> None:
    _a_text(argument)
    if argument.count("{}") != 1:
        raise TransformError("format takes a text with {} once")


def _a_number(argument: Any) -> None:
    if isinstance(argument, bool) or not isinstance(argument, int | float) or abs(argument) > 1e9:
        raise TransformError("scale takes a number of at most 1e9")


def _anything(argument: Any) -> None:
    if argument is None:
        raise TransformError("default takes a value that is not null")


@dataclass(frozen=True, slots=True)
class _Rule:
    example: str
    typed: Callable[[ValueKind, Any], ValueKind]
    applied: Callable[[Any, Any], Any]
    takes: Callable[[Any], None] | None = None


_RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        "first": _Rule("first", _element, _first),
        "index": _Rule("index(2)", _element, _index, _whole),
        "join": _Rule('join(", ")', _joined, lambda value, by: by.join(_text(one) for one in value), _a_text),
        "format": _Rule(
            'format("a {} dress")',
            _formatted,
            lambda value, template: template.replace("{}", _text(value)),
            _a_template,
        ),
        "to_list": _Rule("to_list", _listed, lambda value, _: [value]),
        "default": _Rule(
            'default("none")', _defaulted, lambda value, other: other if value is None else value, _anything
        ),
        "scale": _Rule("scale(0.5)", _scaled, _scale, _a_number),
    }
)
