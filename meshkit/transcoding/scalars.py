"""JSON values to and from protobuf scalars and the well-known types.

Converters raise `BadValueError` and know nothing of where the value stood; the codec adds the location.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from meshkit.freeform import DEPTH_TEXT, MAX_DEPTH, MAX_WHOLE, number_fault
from meshkit.spelling import enum_names

Json = Any
Convert = Callable[[Json], Any]
Fill = Callable[[Any, Json], None]
Print = Callable[[Any], Json]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 -- UTC as well; printing then need not drop the zone
_MIN_TIMESTAMP_SECONDS = -62135596800  # 0001-01-01T00:00:00Z, the least that a Timestamp may hold
_MAX_TIMESTAMP_SECONDS = 253402300799  # 9999-12-31T23:59:59Z, the most
_MAX_DURATION_SECONDS = 315_576_000_000  # as google.protobuf.Duration documents it
_TIMESTAMP = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d(?::\d\d)?)(?:[.,](\d{1,9})\d*)?\s?(Z|z|[+-]\d\d:?\d\d)?", re.ASCII
)
_DURATION = re.compile(r"(-?)(\d{1,12})(?:\.(\d{1,9}))?s", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,20}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_TRUTH = {"true": True, "1": True, "on": True, "yes": True, "false": False, "0": False, "off": False, "no": False}


class BadValueError(Exception):
    """A JSON value that its field cannot hold.

    Attributes:
        message: What is wrong, for the caller.
        kind: The violation's `type`.
        path: Where inside the value, for nested free-form values.
    """

    def __init__(self, message: str, kind: str, path: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.path = path


_F = FieldDescriptor
_RANGES = {
    _F.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    _F.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    _F.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    _F.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}


def integer_range(field: FieldDescriptor) -> tuple[int, int] | None:
    """Return the least and greatest value of an integer field, None for other types."""
    return _RANGES.get(field.cpp_type)


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence has them: `'a', 'b' or 'c'`."""
    quoted = [f"'{name}'" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def converter(field: FieldDescriptor) -> Convert:
    """Return what turns a JSON value into a value of a scalar or enum field.

    The returned function raises `BadValueError`.
    """
    kind = field.cpp_type
    if kind in _RANGES:
        return _integer(*_RANGES[kind])
    if kind in {_F.CPPTYPE_DOUBLE, _F.CPPTYPE_FLOAT}:
        return _single if kind == _F.CPPTYPE_FLOAT else _double
    if kind == _F.CPPTYPE_BOOL:
        return _boolean
    if field.enum_type is not None:
        return _enum(field.enum_type)
    return _bytes if field.type == _F.TYPE_BYTES else _string


def text_converter(field: FieldDescriptor) -> Convert:
    """Return what turns the text of a query or path parameter into a value of a scalar or enum field."""
    convert = converter(field)
    kind = field.cpp_type
    if kind in _RANGES:

        def integer(text: str) -> Any:
            return convert(int(text) if _INTEGER.fullmatch(text) else text)

        return integer
    if kind in {_F.CPPTYPE_DOUBLE, _F.CPPTYPE_FLOAT}:

        def number(text: str) -> Any:
            return convert(float(text) if _NUMBER.fullmatch(text) else text)

        return number
    if kind == _F.CPPTYPE_BOOL:

        def boolean(text: str) -> Any:
            return convert(_TRUTH.get(text.lower(), text))

        return boolean
    return convert


def _integer(low: int, high: int) -> Convert:
    def convert(value: Json) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise BadValueError("Input should be a valid integer", "int_type")
        if not low <= value <= high:
            raise BadValueError(f"Input should be an integer from {low} to {high}", "int_out_of_range")
        return value

    return convert


def _double(value: Json) -> float:
    if type(value) is not float and type(value) is not int:
        raise BadValueError("Input should be a valid number", "float_type")
    number = float(value)
    if not math.isfinite(number):
        raise BadValueError("Input should be a finite number", "finite_number")
    return number


def _single(value: Json) -> float:
    number = _double(value)
    try:
        struct.pack("<f", number)
    except OverflowError:
        raise BadValueError("Input should fit a 32-bit float", "float_out_of_range") from None
    return number


def _boolean(value: Json) -> bool:
    if value is True or value is False:
        return bool(value)
    raise BadValueError("Input should be a valid boolean", "bool_type")


def _string(value: Json) -> str:
    if type(value) is not str:
        raise BadValueError("Input should be a valid string", "string_type")
    return value


def _bytes(value: Json) -> bytes:
    text = _string(value)
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadValueError("Input should be valid base64", "base64") from None


def _enum(enum: EnumDescriptor) -> Convert:
    names = enum_names(enum)
    expected = f"Input should be {listed(names.public)}"

    def convert(value: Json) -> int:
        number = names.by_name.get(value) if type(value) is str else None
        if number is None:
            raise BadValueError(expected, "enum")
        return number

    return convert


def printer(field: FieldDescriptor) -> Print | None:
    """Return what turns a value of a scalar or enum field into JSON; None where it already is JSON."""
    if field.enum_type is not None:
        # A value this build does not know prints null rather than a number that no schema allows.
        return dict(enum_names(field.enum_type).by_number).get
    if field.type == _F.TYPE_BYTES:
        return _print_bytes
    if field.cpp_type == _F.CPPTYPE_FLOAT:
        return _print_single
    return None


def _print_bytes(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _print_single(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    packed = struct.pack("<f", value)
    for digits in (6, 7, 8):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == packed:
            return short
    return value


def _fill_timestamp(target: Any, value: Json) -> None:
    match = _TIMESTAMP.fullmatch(value) if type(value) is str else None
    if match is None:
        raise BadValueError("Input should be a valid datetime, such as 2026-01-31T12:00:00Z", "datetime_parsing")
    day, clock, fraction, offset = match.groups()
    # A time without an offset is UTC, as every time that is printed.
    zone = "+00:00" if offset is None or offset in "Zz" else offset
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{zone}")
        since = moment - _EPOCH
    except (ValueError, OverflowError):
        raise BadValueError(
            "Input should be a valid datetime, such as 2026-01-31T12:00:00Z", "datetime_parsing"
        ) from None
    seconds = since.days * 86400 + since.seconds
    if not _MIN_TIMESTAMP_SECONDS <= seconds <= _MAX_TIMESTAMP_SECONDS:
        raise BadValueError("Input should be a datetime from year 1 to 9999", "datetime_parsing")
    target.SetInParent()
    target.seconds = seconds
    target.nanos = int((fraction or "0").ljust(9, "0"))


@lru_cache(maxsize=256)
def _print_second(seconds: int) -> str:
    # Moments of one answer, and of those around it, mostly lie within the same second.
    return (_NAIVE_EPOCH + timedelta(0, seconds)).isoformat("T", "seconds")


def _print_timestamp(value: Any) -> str:
    return f"{_print_second(value.seconds)}.{value.nanos // 1_000_000:03d}Z"


def _fill_duration(target: Any, value: Json) -> None:
    match = _DURATION.fullmatch(value) if type(value) is str else None
    if match is None or int(match[2]) > _MAX_DURATION_SECONDS:
        raise BadValueError("Input should be a duration in seconds, such as 1.5s", "time_delta_parsing")
    sign = -1 if match[1] else 1
    target.SetInParent()
    target.seconds = sign * int(match[2])
    target.nanos = sign * int((match[3] or "0").ljust(9, "0"))


def _print_duration(value: Any) -> str:
    nanos = value.seconds * 1_000_000_000 + value.nanos
    whole, rest = divmod(abs(nanos), 1_000_000_000)
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{'-' if nanos < 0 else ''}{whole}{fraction}s"


def _fill_struct(target: Any, value: Json, depth: int = 0) -> None:
    if type(value) is not dict:
        raise BadValueError("Input should be a valid dictionary", "dict_type")
    target.SetInParent()
    fields = target.fields
    for key, item in value.items():
        _within(key, fields[key], item, depth)


def _fill_list(target: Any, value: Json, depth: int = 0) -> None:
    if type(value) is not list:
        raise BadValueError("Input should be a valid list", "list_type")
    target.SetInParent()
    for index, item in enumerate(value):
        _within(index, target.values.add(), item, depth)


def _within(key: str | int, target: Any, item: Json, depth: int) -> None:
    try:
        _fill_value(target, item, depth + 1)
    except BadValueError as bad:
        raise BadValueError(bad.message, bad.kind, (key, *bad.path)) from None


def _fill_value(target: Any, value: Json, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise BadValueError(DEPTH_TEXT, "too_deep")
    if value is None:
        target.null_value = 0
    elif value is True or value is False:
        target.bool_value = value
    elif type(value) is str:
        target.string_value = value
    elif type(value) is dict:
        _fill_struct(target.struct_value, value, depth)
    elif type(value) is list:
        _fill_list(target.list_value, value, depth)
    else:
        fault = number_fault(value)
        if fault is not None:
            raise BadValueError(*fault)
        target.number_value = value


def _print_struct(value: Any) -> dict[str, Json]:
    return {key: _print_value(item) for key, item in value.fields.items()}


def _print_list(value: Any) -> list[Json]:
    return [_print_value(item) for item in value.values]


def _print_value(value: Any) -> Json:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value
    if kind == "number_value":
        return _print_number(value.number_value)
    if kind == "bool_value":
        return value.bool_value
    if kind == "struct_value":
        return _print_struct(value.struct_value)
    if kind == "list_value":
        return _print_list(value.list_value)
    return None


def _print_number(number: float) -> float | int | None:
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and abs(number) <= MAX_WHOLE else number


def _fill_mask(target: Any, value: Json) -> None:
    if type(value) is not str:
        raise BadValueError("Input should be a comma-separated list of members", "string_type")
    target.SetInParent()
    target.paths.extend(part.strip() for part in value.split(",") if part.strip())


def _print_mask(value: Any) -> str:
    return ",".join(value.paths)


def _fill_empty(target: Any, value: Json) -> None:
    if type(value) is not dict:
        raise BadValueError("Input should be a valid dictionary", "dict_type")
    target.SetInParent()


def _print_empty(_: Message) -> dict[str, Json]:
    return {}


_WELL_KNOWN: dict[str, tuple[Fill, Print]] = {
    "google.protobuf.Timestamp": (_fill_timestamp, _print_timestamp),
    "google.protobuf.Duration": (_fill_duration, _print_duration),
    "google.protobuf.Struct": (_fill_struct, _print_struct),
    "google.protobuf.ListValue": (_fill_list, _print_list),
    "google.protobuf.Value": (_fill_value, _print_value),
    "google.protobuf.FieldMask": (_fill_mask, _print_mask),
    "google.protobuf.Empty": (_fill_empty, _print_empty),
}


def well_known(message: Descriptor) -> tuple[Fill, Print] | None:
    """Return how a well-known message type is filled from JSON and printed; None for every other type."""
    return _WELL_KNOWN.get(message.full_name)
