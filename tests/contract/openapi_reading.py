"""Reads an OpenAPI document the way the table of the documented surface is written."""

from dataclasses import dataclass
from typing import Any

METHODS = ("get", "put", "post", "delete", "patch", "head")
# How wide a number is; the documented surface does not say.
WIDTHS = {"int32", "int64", "uint32", "uint64", "float", "double"}


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an object, or a parameter: `type` as the table spells it, None where null alone is allowed."""

    type: str | None
    nullable: bool
    required: bool
    schema: dict[str, Any]


class Document:
    """An OpenAPI 3.1 document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.raw = document
        self.schemas: dict[str, Any] = document["components"]["schemas"]

    def operations(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Operations by method in capitals and path."""
        return {
            (method.upper(), path): item[method]
            for path, item in self.raw["paths"].items()
            for method in METHODS
            if method in item
        }

    def spelled(self, schema: dict[str, Any]) -> tuple[str | None, bool]:
        """A schema's type as the table spells it, and whether null is among it."""
        if "$ref" in schema:
            return self._name(schema), False
        for union in ("anyOf", "oneOf"):
            if union in schema:
                found = [self.spelled(option) for option in schema[union]]
                kinds = sorted({kind for kind, _ in found if kind is not None})
                return "|".join(kinds) or None, any(nullable for _, nullable in found)
        if "allOf" in schema and len(schema["allOf"]) == 1:
            return self.spelled(schema["allOf"][0])
        kinds = schema.get("type", "any")
        kinds = [kinds] if isinstance(kinds, str) else kinds
        plain = [kind for kind in kinds if kind != "null"]
        if not plain:
            return None, True
        assert len(plain) == 1, schema
        kind = plain[0]
        if kind == "array":
            kind = f"array<{self.spelled(schema.get('items', {}))[0]}>"
        elif schema.get("format", "") not in WIDTHS | {""}:
            kind = f"{kind}({schema['format']})"
        return kind, "null" in kinds

    def members(self, name: str) -> dict[str, Member]:
        """Members of a component."""
        component = self.schemas[name]
        required = set(component.get("required", []))
        found = {}
        for member, schema in component.get("properties", {}).items():
            kind, nullable = self.spelled(schema)
            found[member] = Member(kind, nullable, member in required, schema)
        return found

    def names(self, schema: dict[str, Any] | None) -> set[str]:
        """Names of the components that a body may be, an array's marked by `[]`; unions of unions are opened."""
        if not schema:
            return set()
        if schema.get("type") == "array":
            return {f"{name}[]" for name in self.names(schema["items"])}
        for union in ("anyOf", "oneOf", "allOf"):
            if union in schema:
                return {name for option in schema[union] for name in self.names(option)}
        if "$ref" in schema:
            name = self._name(schema)
            inner = self.schemas[name]
            return self.names(inner) if "oneOf" in inner or "anyOf" in inner else {name}
        return set()

    @staticmethod
    def _name(schema: dict[str, Any]) -> str:
        return str(schema["$ref"]).removeprefix("#/components/schemas/")


def request_schema(operation: dict[str, Any]) -> dict[str, Any]:
    """Schema of an operation's documented body: multipart where it takes one, else JSON."""
    content = operation.get("requestBody", {}).get("content", {})
    for kind in ("multipart/form-data", "application/json"):
        if kind in content:
            return dict(content[kind]["schema"])
    return {}


def answer_schema(operation: dict[str, Any]) -> dict[str, Any]:
    """Schema of an operation's JSON answer, empty where it has none."""
    content = operation["responses"].get("200", {}).get("content", {})
    return dict(content.get("application/json", {}).get("schema", {}))
