"""Rules of the contract, applied to requests: defaults first, then validation.

Both come from the descriptors: `(atelier.options.v1.field).default_value` and `buf.validate`. What a message type needs
is worked out once, on its first use.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import protovalidate
from atelier.options.v1 import options_pb2
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from meshkit import freeform
from meshkit.errors import ErrorKind, FieldViolation, MeshError
from meshkit.freeform import FreeFormLimits
from meshkit.spelling import enum_number

# protovalidate names the rule (`int32.gte_lte`), callers of the JSON API expect the names that such APIs use.
_TYPE_OF_RULE = {
    "required": "missing",
    "gte": "greater_than_equal",
    "gt": "greater_than",
    "lte": "less_than_equal",
    "lt": "less_than",
    "min_len": "string_too_short",
    "max_len": "string_too_long",
    "pattern": "string_pattern_mismatch",
    "uuid": "uuid_parsing",
    "uuid_empty": "uuid_parsing",
    "uri": "url_parsing",
    "uri_empty": "url_parsing",
    "min_items": "too_short",
    "max_items": "too_long",
    "min_pairs": "too_short",
    "max_pairs": "too_long",
    "defined_only": "enum",
    "in": "enum",
}

# The library's sentences that read oddly.
_PLAINER = {
    "must be at least 1 characters": "must not be empty",
    "must contain at least 1 item(s)": "must not be empty",
}

_Setter = Callable[[Message], None]
_DEFAULT_LIMITS = FreeFormLimits()


def check(message: Message, limits: FreeFormLimits = _DEFAULT_LIMITS) -> None:
    """Hold a message to the rules of its contract, and to those that hold for every contract.

    Args:
        message: A request, its defaults applied.
        limits: What each of its free-form members may hold.

    Raises:
        MeshError: `INVALID` with one violation for each member that does not hold.
    """
    violations = list(_value_violations(message, "", limits))
    told = {one.path for one in violations}
    violations.extend(
        one
        for found in protovalidate.collect_violations(message)
        # NaN breaks every rule or none; of a number that is none nothing else needs to be said.
        if (one := _violation(found.proto)).path not in told
    )
    # A NUL in a text is one in the encoded message, where a number may have put it too; what is rare is looked for
    # member by member.
    if b"\0" in message.SerializeToString() and _holds_nul(message):
        violations.extend(
            FieldViolation(path, "must not contain NUL characters", "string_contains_nul")
            for path in _nul_paths(message, "")
        )
    if violations:
        first = violations[0]
        text = f"{first.path}: {first.message}" if first.path else first.message
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        raise MeshError(ErrorKind.INVALID, f"{text}{more}", reason="VALIDATION", violations=violations)


def apply_defaults(message: Message) -> None:
    """Fill absent fields, in the message and the messages it holds, with the defaults of the contract.

    A member of a oneof is never chosen by its default; an absent message stays absent unless it has a default itself.

    Args:
        message: A request; changed in place.
    """
    descriptor = cast("Descriptor", message.DESCRIPTOR)
    plan = _plans.get(descriptor) or _plan(descriptor)
    for setter in plan.setters:
        setter(message)
    for walk in plan.walks:
        walk(message)


@dataclass(frozen=True, slots=True)
class _Plan:
    setters: tuple[_Setter, ...]
    walks: tuple[_Setter, ...]


_plans: dict[Descriptor, _Plan] = {}
_plans_lock = threading.Lock()


def _plan(descriptor: Descriptor) -> _Plan:
    with _plans_lock:
        plan = _plans[descriptor] = _build(descriptor)
    return plan


def _build(descriptor: Descriptor) -> _Plan:
    setters = tuple(setter for field in descriptor.fields for setter in _default_setters(field))
    walks = [_walk(field) for field in descriptor.fields if not _in_real_oneof(field) and _may_hold_defaults(field)]
    for oneof in descriptor.oneofs:
        members = frozenset(field.name for field in oneof.fields if _in_real_oneof(field) and _may_hold_defaults(field))
        if members:
            walks.append(_walk_oneof(oneof.name, members))
    return _Plan(setters, tuple(walks))


def _default_setters(field: FieldDescriptor) -> Iterator[_Setter]:
    text = field.GetOptions().Extensions[options_pb2.field].default_value
    if not text or _in_real_oneof(field):
        return
    value = json.loads(text)
    if value in ([], {}) and field.is_repeated:
        return
    yield _setter(field, value)


def _setter(field: FieldDescriptor, value: Any) -> _Setter:
    name = field.name
    if field.is_repeated or field.message_type is not None:
        template = json_format.ParseDict(
            {name: value}, message_factory.GetMessageClass(cast("Descriptor", field.containing_type))()
        )

        def set_message(message: Message) -> None:
            absent = not getattr(message, name) if field.is_repeated else not message.HasField(name)
            if absent:
                message.MergeFrom(template)

        return set_message
    scalar = enum_number(field.enum_type, value) if field.enum_type is not None else value
    if field.has_presence:

        def set_scalar(message: Message) -> None:
            if not message.HasField(name):
                setattr(message, name, scalar)

        return set_scalar

    def set_zero(message: Message) -> None:
        if not getattr(message, name):
            setattr(message, name, scalar)

    return set_zero


def _walk(field: FieldDescriptor) -> _Setter:
    name = field.name
    if _is_map(field):

        def walk_map(message: Message) -> None:
            for item in getattr(message, name).values():
                apply_defaults(item)

        return walk_map
    if field.is_repeated:

        def walk_list(message: Message) -> None:
            for item in getattr(message, name):
                apply_defaults(item)

        return walk_list

    def walk_one(message: Message) -> None:
        if message.HasField(name):
            apply_defaults(getattr(message, name))

    return walk_one


def _walk_oneof(name: str, members: frozenset[str]) -> _Setter:
    def walk_chosen(message: Message) -> None:
        chosen = message.WhichOneof(name)
        if chosen in members:
            apply_defaults(getattr(message, chosen))

    return walk_chosen


def _may_hold_defaults(field: FieldDescriptor) -> bool:
    inner = _message_of(field)
    return inner is not None and _reaches_default(inner, set())


def _reaches_default(descriptor: Descriptor, seen: set[str]) -> bool:
    if descriptor.full_name in seen or descriptor.full_name.startswith("google.protobuf."):
        return False
    seen.add(descriptor.full_name)
    return any(
        field.GetOptions().Extensions[options_pb2.field].default_value
        or ((inner := _message_of(field)) is not None and _reaches_default(inner, seen))
        for field in descriptor.fields
    )


def _message_of(field: FieldDescriptor) -> Descriptor | None:
    inner = field.message_type
    return inner.fields_by_name["value"].message_type if inner is not None and _is_map(field) else inner


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _in_real_oneof(field: FieldDescriptor) -> bool:
    # A proto3 `optional` is held in a oneof of its own, by convention named with a leading underscore.
    return field.containing_oneof is not None and not field.containing_oneof.name.startswith("_")


def _holds_nul(message: Message) -> bool:
    """Whether a text in a message has a NUL: `_nul_paths` without the paths, at a third of their price."""
    for field, value in message.ListFields():
        if isinstance(value, str):
            found = "\0" in value
        elif isinstance(value, Message):
            found = _holds_nul(value)
        else:
            found = field.is_repeated and any(True for _ in _nul_in_field(field, value, ""))
        if found:
            return True
    return False


def _nul_paths(message: Message, prefix: str) -> Iterator[str]:
    for field, value in message.ListFields():
        yield from _nul_in_field(field, value, f"{prefix}{field.name}")


def _nul_in_field(field: FieldDescriptor, value: Any, path: str) -> Iterator[str]:
    if field.type == FieldDescriptor.TYPE_STRING:
        yield from _nul_in_strings(value, path) if field.is_repeated else ([path] if "\0" in value else ())
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        yield from _nul_in_message(field, value, path)


def _nul_in_strings(values: list[str], path: str) -> Iterator[str]:
    return (f"{path}[{index}]" for index, value in enumerate(values) if "\0" in value)


def _nul_in_message(field: FieldDescriptor, value: Any, path: str) -> Iterator[str]:
    if _is_map(field):
        for key, item in value.items():
            place = f'{path}["{key}"]'
            if isinstance(key, str) and "\0" in key:
                yield path
            elif isinstance(item, Message):
                yield from _nul_inside(item, place)
            elif isinstance(item, str) and "\0" in item:
                yield place
    elif field.is_repeated:
        for index, item in enumerate(value):
            yield from _nul_inside(item, f"{path}[{index}]")
    else:
        yield from _nul_inside(value, path)


def _nul_inside(message: Message, path: str) -> Iterator[str]:
    if message.DESCRIPTOR.full_name in freeform.TYPES:
        # Its inner layout is not the caller's: report the JSON member that holds the character.
        if any(True for _ in _nul_paths(message, "")):
            yield path
        return
    yield from _nul_paths(message, f"{path}.")


@dataclass(frozen=True, slots=True)
class _ValuePlan:
    """Fields of a message type whose values are held to rules that no contract states.

    Attributes:
        numbers: Floating-point fields.
        free: Free-form fields.
        inner: Fields whose messages have such fields.
        chosen: Oneofs with a member among `inner`, and those members.
    """

    numbers: tuple[FieldDescriptor, ...]
    free: tuple[FieldDescriptor, ...]
    inner: tuple[FieldDescriptor, ...]
    chosen: tuple[tuple[str, frozenset[str]], ...]


_value_plans: dict[Descriptor, _ValuePlan] = {}
_FLOATS = frozenset({FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT})


def _value_plan(descriptor: Descriptor) -> _ValuePlan:
    inner = [field for field in descriptor.fields if _may_hold_values(field)]
    chosen = (
        (oneof.name, frozenset(field.name for field in oneof.fields if field in inner)) for oneof in descriptor.oneofs
    )
    plan = _value_plans[descriptor] = _ValuePlan(
        numbers=tuple(field for field in descriptor.fields if field.cpp_type in _FLOATS),
        free=tuple(
            field for field in descriptor.fields if (of := _message_of(field)) and of.full_name in freeform.TYPES
        ),
        inner=tuple(field for field in inner if not _in_real_oneof(field)),
        chosen=tuple((name, members) for name, members in chosen if members and not name.startswith("_")),
    )
    return plan


def _may_hold_values(field: FieldDescriptor) -> bool:
    inner = _message_of(field)
    return inner is not None and inner.full_name not in freeform.TYPES and _reaches_value(inner, set())


def _reaches_value(descriptor: Descriptor, seen: set[str]) -> bool:
    if descriptor.full_name in seen:
        return False
    seen.add(descriptor.full_name)
    if descriptor.full_name in freeform.TYPES:
        return True
    return any(
        field.cpp_type in _FLOATS or ((inner := _message_of(field)) is not None and _reaches_value(inner, seen))
        for field in descriptor.fields
    )


def _value_violations(message: Message, prefix: str, limits: FreeFormLimits) -> Iterator[FieldViolation]:
    """Yield numbers that no JSON holds, and free-form members that are too large."""
    descriptor = cast("Descriptor", message.DESCRIPTOR)
    plan = _value_plans.get(descriptor) or _value_plan(descriptor)
    for field in plan.numbers:
        yield from _number_violations(field, getattr(message, field.name), f"{prefix}{field.name}")
    for field in plan.free:
        for path, one in _present(message, field, prefix):
            yield from (
                FieldViolation(path + fault.path, fault.message, fault.kind) for fault in freeform.faults(one, limits)
            )
    for field in plan.inner:
        for path, one in _present(message, field, prefix):
            yield from _value_violations(one, f"{path}.", limits)
    for oneof, members in plan.chosen:
        name = message.WhichOneof(oneof)
        if name in members:
            yield from _value_violations(getattr(message, name), f"{prefix}{name}.", limits)


def _number_violations(field: FieldDescriptor, value: Any, path: str) -> Iterator[FieldViolation]:
    for place, number in _places(field, value, path):
        if not math.isfinite(number):
            yield FieldViolation(place, "Input should be a finite number", "finite_number")


def _present(message: Message, field: FieldDescriptor, prefix: str) -> Iterator[tuple[str, Any]]:
    if field.is_repeated or message.HasField(field.name):
        yield from _places(field, getattr(message, field.name), f"{prefix}{field.name}")


def _places(field: FieldDescriptor, value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the values of a field, each with its path."""
    if _is_map(field):
        for key, item in value.items():
            yield f"{path}[{json.dumps(key)}]", item
    elif field.is_repeated:
        for index, item in enumerate(value):
            yield f"{path}[{index}]", item
    else:
        yield path, value


def _violation(proto: Any) -> FieldViolation:
    path = "".join(_path_parts(proto.field.elements)) if proto.field is not None else ""
    rule = proto.rule_id.rsplit(".", 1)[-1]
    # `gte_lte` covers two bounds; the name of the first stands for both.
    kind = _TYPE_OF_RULE.get(rule) or _TYPE_OF_RULE.get(rule.split("_", 1)[0], "value_error")
    message = _PLAINER.get(proto.message, proto.message) or "is not valid"
    return FieldViolation(path, "Field required" if kind == "missing" else message, kind)


def _path_parts(elements: Any) -> Iterator[str]:
    for index, element in enumerate(elements):
        yield element.field_name if not index else f".{element.field_name}"
        subscript = element.subscript
        if subscript is not None:
            yield f"[{json.dumps(subscript.value) if isinstance(subscript.value, str) else subscript.value}]"
