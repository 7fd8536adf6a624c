"""The documented JSON examples of monitoring, and in what an answer differs from one in shape.

`scripts/derive_examples.py` takes the examples from the reference. Shape is the names of members at every level, and
the JSON type of each value. Where an example prints null, the schema of the reference tells the type.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "contract"
_SCHEMAS: dict[str, Any] = json.loads((_FOLDER / "documented_surface.json").read_text(encoding="utf-8"))["schemas"]
_EXAMPLES: list[dict[str, Any]] = json.loads((_FOLDER / "documented_examples.json").read_text(encoding="utf-8"))

_TYPES: dict[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    dict: "object",
    type(None): "null",
}
_SYSTEM = "/api/system"

# Objects whose members are names of things, not of the shape.
_MAPS = {
    f"{_SYSTEM}/monitoring/targets": {"targets[].labels"},
    f"{_SYSTEM}/pipeline": {"degradation.fallback_queues"},
    f"{_SYSTEM}/health/full": {"circuit_breakers.breakers", "redis.details"},
    f"{_SYSTEM}/websocket/events": {"event_types[].payload_schema", "event_types[].example"},
}
# What the rules let be null although the examples print a value of it.
_NULLS = {
    f"{_SYSTEM}/monitoring/health": {"exporters[].last_scrape", "metrics_collection.last_successful_scrape"},
    f"{_SYSTEM}/monitoring/targets": {"targets[].last_scrape"},
    f"{_SYSTEM}/supervisor": {"workers[].last_started_at"},
    f"{_SYSTEM}/pipeline": {"file_watcher", "batch_aggregator", "degradation.services[].last_check"},
    f"{_SYSTEM}/health/full": {"ai_services[].response_time_ms"},
    f"{_SYSTEM}/websocket/events": {"event_types[].channel", "event_types[].example"},
}
# What the examples print as null in all of their elements, and is of this type where it is not null.
_NULL_TYPES = {
    "queues[].avg_wait_time_ms": "number",
    "workers[].memory_mb": "number",
    "steps[].task_id": "string",
    "steps[].result": "object",
    "exporters[].error": "string",
    "targets[].last_error": "string",
    "degradation.services[].error_message": "string",
    "ai_services[].error": "string",
    "postgres.details": "object",
}
# The reference prints no type of what may be null: members of the first have the types of those named so in the second.
_LIKE = {
    "TaskListItem": "TaskDetailResponse",
    "WorkflowListItem": "WorkflowDetailResponse",
    "WorkflowStepMonitor": "WorkflowDetailResponse",
}
# What is printed as null against its schema, and which member of the same example shows its shape.
_INSTEAD = {"/api/v1/monitoring/tasks/{task_id}/media": {"outputs": "inputs"}}
# What the examples leave out: another source of the reference has it, or it is this mesh's own.
_BEYOND = {
    "/api/v1/monitoring/workers": {"workers[].cordoned", "workers[].fault"},
    "/api/v1/monitoring/workflows/{workflow_id}": {"steps[].for_each", "steps[].items"},
    f"{_SYSTEM}/websocket/events": {"event_types[].replacement"},
}


@dataclass(frozen=True, slots=True)
class DocumentedAnswer:
    """The documented answer to one request.

    Attributes:
        schema: Name of its schema; None where the reference prints none.
    """

    method: str
    path: str
    schema: str | None
    example: dict[str, Any]
    maps: Collection[str] = field(default=())
    nulls: Collection[str] = field(default=())
    beyond: Collection[str] = field(default=())

    def differences(self, found: Any) -> list[str]:
        """Return in what an answer differs in shape."""
        return list(self._compared("", [self.example], self.schema, found))

    def holds(self, found: Any) -> None:
        """Fail where an answer differs in shape."""
        assert not self.differences(found), (self.method, self.path, found)

    def empty_lists(self, found: Any) -> list[str]:
        """Return the lists that an answer has no element of although the example has: they are not compared."""
        return sorted(set(_empty("", self.example, found)))

    def _compared(self, at: str, examples: Sequence[Any], kind: str | None, found: Any) -> Iterator[str]:
        """Compare a value with all examples of it; those of a list are each an example of every element."""
        printed = [one for one in examples if one is not None]
        if found is None:
            if len(printed) == len(examples) and at not in self.nulls:
                yield f"{at} is null"
        elif isinstance(found, dict) and (objects := [one for one in printed if isinstance(one, dict)]):
            yield from self._free(at, objects, found) if at in self.maps else self._members(at, objects, kind, found)
        elif isinstance(found, list) and (lists := [one for one in printed if isinstance(one, list)]):
            of = kind.removeprefix("array<")[:-1] if kind and kind.startswith("array<") else None
            inner = [element for one in lists for element in one]
            for element in found if inner else ():
                yield from self._compared(f"{at}[]", inner, of, element)
        elif not _fits(found, printed, kind if kind or printed else _NULL_TYPES.get(at)):
            yield f"{at} is {json.dumps(found)[:80]}"

    def _free(self, at: str, examples: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> Iterator[str]:
        """Compare an object whose members are free: its values are of one type where those of the examples are."""
        types = {_type(value) for one in examples for value in one.values()}
        if len(types) == 1:
            yield from (
                f"{at}.{name} is {json.dumps(one)[:80]}" for name, one in found.items() if _type(one) not in types
            )

    def _members(
        self, at: str, examples: Sequence[Mapping[str, Any]], kind: str | None, found: Mapping[str, Any]
    ) -> Iterator[str]:
        fields = _SCHEMAS.get(kind or "", {}).get("fields", {})
        like = _SCHEMAS.get(_LIKE.get(kind or "", ""), {}).get("fields", {})
        names = {name for one in examples for name in one}
        if not names:  # the example prints an object whose members are free
            return
        below = f"{at}." if at else ""
        for name in sorted(names - set(found)):
            yield f"{below}{name} is missing"
        for name, value in found.items():
            if name in names:
                told = fields.get(name, {})
                values = [one[name] for one in examples if name in one] + ([None] if told.get("nullable") else [])
                type_ = told.get("type") or like.get(name, {}).get("type")
                yield from self._compared(f"{below}{name}", values, type_, value)
            elif f"{below}{name}" not in self.beyond:
                yield f"{below}{name} is not documented"


def _fits(found: Any, printed: Sequence[Any], kind: str | None) -> bool:
    """Tell whether a value that is not null is of one of the documented types."""
    types = {_type(one) for one in printed} | {_json_type(one) for one in (kind or "").split("|") if one} - {"any"}
    own = _type(found)
    return not types or own in types or (own == "integer" and "number" in types)


def _json_type(kind: str) -> str:
    """Return the JSON type of a type as the table of the documented surface spells it."""
    if kind in _SCHEMAS:
        return "string" if _SCHEMAS[kind]["kind"] == "enum" else "object"
    return kind.partition("(")[0].partition("<")[0]


def _type(value: Any) -> str:
    return "array" if isinstance(value, list) else _TYPES[type(value)]


def _empty(at: str, example: Any, found: Any) -> Iterator[str]:
    if isinstance(example, dict) and isinstance(found, dict):
        for name in example:
            yield from _empty(f"{at}.{name}" if at else name, example[name], found.get(name))
    elif isinstance(example, list) and example and isinstance(found, list):
        if not found:
            yield at
        for one in found:
            yield from _empty(f"{at}[]", example[0], one)


def documented(method: str, path: str) -> DocumentedAnswer:
    """Return the documented answer to a request, its path as the reference prints it."""
    [one] = [one for one in _EXAMPLES if (one["method"], one["path"]) == (method, path)]
    example = one["example"]
    example |= {name: example[other] for name, other in _INSTEAD.get(path, {}).items()}
    return DocumentedAnswer(**one, maps=_MAPS.get(path, ()), nulls=_NULLS.get(path, ()), beyond=_BEYOND.get(path, ()))


def documented_requests() -> set[tuple[str, str]]:
    """Return the methods and paths of all examples."""
    return {(one["method"], one["path"]) for one in _EXAMPLES}
