"""Read documents that a user wrote: YAML or JSON, as the values that JSON can hold.

Every fault is a sentence with its place: line and column of what cannot be parsed, the line of a key that stands twice,
and the path of a value of another kind, such as a date.
"""

import datetime as dt
import json
import math
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml  # type: ignore[import-untyped]  # ships no types

from atelier_cli.errors import CliError, ExitCode
from atelier_cli.files import content

# The gateway takes no request above 32 MiB.
_MAX_BYTES: Final = 48 * 1024 * 1024
# YAML's aliases make a small file hold any number of values.
_MAX_VALUES: Final = 200_000
_KINDS: Final = {
    "tag:yaml.org,2002:set": "a set, which JSON cannot hold; write a list",
    "tag:yaml.org,2002:omap": "an ordered map, which JSON cannot hold; write a list of objects",
    "tag:yaml.org,2002:pairs": "a list of pairs, which JSON cannot hold; write a list of objects",
}


class _RepeatedKeyError(ValueError):
    """A key stands twice in one object of a JSON document."""


def read_object(file: Path) -> dict[str, Any]:
    """Return the object that a YAML or JSON file holds.

    Raises:
        CliError: It cannot be read or parsed, holds no object, or a value that JSON has no kind for.
    """
    data = content(file, _MAX_BYTES)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CliError(
            f"{file} is not UTF-8: line {line} has the byte 0x{data[error.start]:02x}.", ExitCode.USAGE
        ) from None
    try:
        value = _read_json(file, text) if _looks_like_json(file, text) else _Reader(file).read(text)
    except RecursionError:
        raise CliError(f"{file} is nested too deeply.", ExitCode.USAGE) from None
    if not isinstance(value, dict):
        raise CliError(f"{file} holds no object with members.", ExitCode.USAGE)
    return value


def _looks_like_json(file: Path, text: str) -> bool:
    """Whether to read a file as JSON: YAML reads tabs, `1e5` and pairs of surrogates otherwise than JSON does."""
    if file.suffix.lower() == ".json":
        return True
    if not text.lstrip().startswith("{"):
        return False
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _read_json(file: Path, text: str) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        _refuse(file, f"line {error.lineno}, column {error.colno}", error.msg)
    except _RepeatedKeyError as error:
        # json tells no places; YAML does, and reads tabs where they are spaces.
        _Reader(file).read(text.replace("\t", " "))
        _refuse(file, None, str(error))
    except ValueError:
        _refuse(file, None, "a number has too many digits")
    _require_json(file, value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        message = f"the key {repeated!r} stands twice in one object"
        raise _RepeatedKeyError(message)
    return found


def _require_json(file: Path, value: Any, path: str = "") -> None:
    if isinstance(value, dict):
        for name, each in value.items():
            _require_text(file, None, _member(path, name), name)
            _require_json(file, each, _member(path, name))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            _require_json(file, each, f"{path}[{index}]")
    elif fault := _fault(value):
        _refuse(file, None, f"{path or 'it'} is {fault}")


def _require_text(file: Path, place: str | None, path: str, name: str) -> None:
    if fault := _fault(name):
        _refuse(file, place, f"the key of {path} is {fault}")


class _Reader:
    """Reads one YAML document node by node, so that each fault has its line."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._open: set[int] = set()
        self._merged: set[int] = set()
        self._count = 0

    def read(self, text: str) -> Any:
        """Return the values of the document.

        Raises:
            CliError: It is no YAML, or holds what JSON cannot.
        """
        try:
            self._loader = yaml.SafeLoader(text)
            node = self._loader.get_single_node()
            return None if node is None else self._value(node, "")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = ", ".join(part for part in (error.context, error.problem) if part)
            _refuse(self._file, _place(mark) if mark else None, what)
        except yaml.reader.ReaderError as error:
            before = text[: error.position]
            place = f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"
            _refuse(self._file, place, f"the character U+{ord(text[error.position]):04X} is not allowed")

    def _value(self, node: yaml.Node, path: str) -> Any:
        self._count += 1
        if self._count > _MAX_VALUES:
            raise CliError(f"{self._file} holds more than {_MAX_VALUES} values.", ExitCode.USAGE)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            _refuse(self._file, _place(node.start_mark), f"{path} contains itself")
        if node.tag in _KINDS:
            _refuse(self._file, _place(node.start_mark), f"{path or 'it'} is {_KINDS[node.tag]}")
        if node.tag not in {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}:
            self._loader.construct_object(node, deep=True)  # refuses a tag that nobody knows
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self._value(each, f"{path}[{index}]") for index, each in enumerate(node.value)]
            return self._object(node, path)
        finally:
            self._open.remove(id(node))

    def _object(self, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        if id(node) not in self._merged:
            self._require_unique(node, path)
            self._loader.flatten_mapping(node)
            self._merged.add(id(node))
        # A key that the object has of its own comes after the merged one, and counts.
        return {
            name: self._value(each, _member(path, name)) for key, each in node.value for name in [self._key(key, path)]
        }

    def _require_unique(self, node: yaml.MappingNode, path: str) -> None:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name = self._key(key, path)
            if name in lines:
                message = f"the key {name!r} stands here again; line {lines[name]} has it already"
                _refuse(self._file, _place(key.start_mark), message)
            lines[name] = key.start_mark.line + 1

    def _key(self, key: yaml.Node, path: str) -> str:
        value: Hashable = key.value if key.tag == "tag:yaml.org,2002:merge" else None
        if value is None and isinstance(key, yaml.ScalarNode):
            value = self._loader.construct_object(key)
        if not isinstance(value, str):
            inside = f" in {path}" if path else ""
            quoted = f" {key.value}" if isinstance(key, yaml.ScalarNode) else ""
            _refuse(self._file, _place(key.start_mark), f"the key{quoted}{inside} is no text; write it in quotes")
        _require_text(self._file, _place(key.start_mark), _member(path, value), value)
        return value

    def _scalar(self, node: yaml.ScalarNode, path: str) -> Any:
        try:
            value = self._loader.construct_object(node)
        except ValueError:
            _refuse(self._file, _place(node.start_mark), f"{path or 'it'} is no valid value; write text in quotes")
        if fault := _fault(value):
            _refuse(self._file, _place(node.start_mark), f"{path or 'it'} is {fault}")
        return value


def _fault(value: Any) -> str | None:
    """Say what keeps a single value from being JSON; None if nothing does."""
    match value:
        case None | bool() | int():
            return None
        case float():
            return None if math.isfinite(value) else f"{value}, which JSON cannot hold"
        case str():
            lone = next((letter for letter in value if "\ud800" <= letter <= "\udfff"), None)
            return lone and f"text with half a character (U+{ord(lone):04X}), which JSON cannot hold"
        case dt.date():
            return "a date, which JSON cannot hold; write it in quotes"
        case bytes():
            return "binary, which JSON cannot hold; write it as text"
        case _:
            return f"of the kind {type(value).__name__}, which JSON cannot hold"


def _member(path: str, name: str) -> str:
    shown = name.encode("utf-8", "backslashreplace").decode()
    return f"{path}.{shown}" if path else shown


def _place(mark: yaml.Mark) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _refuse(file: Path, place: str | None, what: str) -> NoReturn:
    raise CliError(f"{file}{f', {place}' if place else ''}: {what}.", ExitCode.USAGE)
