"""JSON schemas of message types, in the shapes that the original document has.

A message is one component. One with a flattened oneof is a union: a component for each variant, made of the common
members and the variant's own. Nullable is `anyOf [..., null]`, members have titles, descriptions come from the comments
of the contracts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, SourceCodeInfo

from meshkit.spelling import ContractError, enum_names
from meshkit.transcoding.options import (
    Flattened,
    field_json,
    field_rules,
    flattened,
    is_map,
    is_optional,
    json_name,
    nested,
    plain_fields,
    prints_null,
    schema_name,
)
from meshkit.transcoding.scalars import integer_range

Schema = dict[str, Any]
NULL: Schema = {"type": "null"}

_F = FieldDescriptor
_WELL_KNOWN: Mapping[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": "^-?[0-9]+(\\.[0-9]{1,9})?s$"},
    "google.protobuf.Struct": {"additionalProperties": True, "type": "object"},
    "google.protobuf.ListValue": {"items": {}, "type": "array"},
    "google.protobuf.Value": {},
    "google.protobuf.FieldMask": {"type": "string"},
    "google.protobuf.Empty": {"type": "object"},
}
_NUMBER_RULES = {
    "gte": "minimum",
    "gt": "exclusiveMinimum",
    "lte": "maximum",
    "lt": "exclusiveMaximum",
    "const": "const",
}
_STRING_RULES = {"min_len": "minLength", "max_len": "maxLength", "pattern": "pattern", "const": "const"}
_LIST_RULES = {"min_items": "minItems", "max_items": "maxItems", "unique": "uniqueItems"}
_MAP_RULES = {"min_pairs": "minProperties", "max_pairs": "maxProperties"}
_FORMATS = ("uuid", "email", "uri", "hostname", "ipv4", "ipv6")


class Comments:
    """Comments of the contracts, by the full name of what they stand at."""

    def __init__(self, image: FileDescriptorSet) -> None:
        self._texts: dict[str, str] = {}
        for file in image.file:
            # Most places have none.
            places = (one for one in file.source_code_info.location if one.leading_comments)
            self._read(file, {tuple(one.path): _text(one) for one in places})

    def of(self, full_name: str) -> str:
        """Return the comment, empty where there is none."""
        return self._texts.get(full_name, "")

    def _read(self, file: FileDescriptorProto, texts: Mapping[tuple[int, ...], str]) -> None:
        # Numbers are those of the fields of FileDescriptorProto, DescriptorProto and so on.
        prefix = f"{file.package}."
        for index, message in enumerate(file.message_type):
            self._message(message, (4, index), prefix, texts)
        for index, enum in enumerate(file.enum_type):
            self._note(prefix + enum.name, (5, index), texts)
            for at, value in enumerate(enum.value):
                # Names of values stand beside that of their enum.
                self._note(prefix + value.name, (5, index, 2, at), texts)
        for index, service in enumerate(file.service):
            for at, method in enumerate(service.method):
                self._note(f"{prefix}{service.name}.{method.name}", (6, index, 2, at), texts)

    def _message(self, message: Any, path: tuple[int, ...], prefix: str, texts: Mapping[tuple[int, ...], str]) -> None:
        name = prefix + message.name
        self._note(name, path, texts)
        for index, one in enumerate(message.field):
            self._note(f"{name}.{one.name}", (*path, 2, index), texts)
        for index, inner in enumerate(message.nested_type):
            self._message(inner, (*path, 3, index), f"{name}.", texts)
        for index, enum in enumerate(message.enum_type):
            self._note(f"{name}.{enum.name}", (*path, 4, index), texts)

    def _note(self, name: str, path: tuple[int, ...], texts: Mapping[tuple[int, ...], str]) -> None:
        if path in texts:
            self._texts[name] = texts[path]


def _text(location: SourceCodeInfo.Location) -> str:
    return " ".join(line.strip() for line in location.leading_comments.strip().splitlines())


def title_of(member: str) -> str:
    """Return a member's title: `subject_model_path` is `Subject Model Path`."""
    return " ".join(word.capitalize() for word in member.split("_"))


def reference(name: str) -> Schema:
    """Return a reference to a component."""
    return {"$ref": f"#/components/schemas/{name}"}


def nullable(schema: Schema) -> Schema:
    """Return a schema that also allows null."""
    return {"anyOf": [schema, NULL]} if schema else schema


def described(schema: Schema, title: str, description: str) -> Schema:
    """Return a schema with its title, which a bare reference does without, and its description."""
    out = dict(schema)
    options = schema.get("anyOf", [schema])
    if not any("$ref" in one for one in options):
        out["title"] = title
    if description:
        out["description"] = description
    return out


class Components:
    """The schemas of a document, made as they are asked for."""

    def __init__(self, comments: Comments) -> None:
        self._comments = comments
        self._schemas: dict[str, Schema] = {}
        self._owners: dict[str, str] = {}

    @property
    def schemas(self) -> dict[str, Schema]:
        """Every component so far, by name."""
        return dict(sorted(self._schemas.items()))

    def comment(self, full_name: str) -> str:
        """Return the comment of what a contract declares."""
        return self._comments.of(full_name)

    def union_members(self, message: Descriptor) -> list[Schema]:
        """Return references to the variants of a message with a flattened oneof; the message itself without one."""
        flat = flattened(message)
        if flat is None:
            return [self.message(message)]
        return [self._variant(message, flat, value) for value in flat.public]

    def union(self, message: Descriptor) -> Schema:
        """Return the schema of a message where it is a body of its own: unions are spelled out."""
        flat = flattened(message)
        members = self.union_members(message)
        if flat is None:
            return members[0]
        mapping = {value: one["$ref"] for value, one in zip(flat.public, members, strict=True)}
        return {"anyOf": members, "discriminator": {"propertyName": flat.discriminator, "mapping": mapping}}

    def variant(self, message: Descriptor, value: str) -> Schema:
        """Return the schema of one variant of a message; of the message where it has none.

        Raises:
            ContractError: there is no such variant.
        """
        flat = flattened(message)
        if flat is None:
            return self.message(message)
        if value not in flat.variants:
            raise ContractError(f"{message.full_name} has no variant {value}")
        return self._variant(message, flat, value)

    def message(self, message: Descriptor) -> Schema:
        """Return the schema of a message as a member: a reference, or a well-known type's schema."""
        known = _WELL_KNOWN.get(message.full_name)
        if known is not None:
            return dict(known)
        name = schema_name(message)
        if self._claim(name, message.full_name):
            flat = flattened(message)
            description = self.comment(message.full_name)
            if flat is not None:
                self._schemas[name] = described(self.union(message), name, description) | {"title": name}
            else:
                self._schemas[name] = self._object(name, description, plain_fields(message), {}, [])
        return reference(name)

    def _variant(self, message: Descriptor, flat: Flattened, value: str) -> Schema:
        detail = nested(flat.variants[value])
        name = schema_name(detail)
        if self._claim(name, f"{message.full_name}.{flat.name}.{value}"):
            discriminator = {
                flat.discriminator: {
                    "type": "string",
                    "const": value,
                    "title": title_of(flat.discriminator),
                    "default": value,
                }
            }
            fields = [*plain_fields(message), *plain_fields(detail)]
            required = [flat.discriminator] if flat.required else []
            self._schemas[name] = self._object(name, self.comment(detail.full_name), fields, discriminator, required)
        return reference(name)

    def add(self, name: str, schema: Schema) -> Schema:
        """Add a component that no message stands behind and return a reference to it."""
        if self._claim(name, name):
            self._schemas[name] = schema
        return reference(name)

    def _claim(self, name: str, owner: str) -> bool:
        before = self._owners.setdefault(name, owner)
        if before != owner:
            raise ContractError(f"schema {name} would be both {before} and {owner}")
        if name in self._schemas:
            return False
        self._schemas[name] = {}  # stands in while it is made, for messages that contain themselves
        return True

    def _object(
        self, name: str, description: str, fields: Iterable[FieldDescriptor], properties: Schema, required: list[str]
    ) -> Schema:
        properties = dict(properties)
        required = list(required)
        for one in fields:
            member = json_name(one)
            properties[member] = self.member(one)
            if _required(one):
                required.append(member)
        out: Schema = {"properties": properties, "type": "object"}
        if required:
            out["required"] = required
        out["title"] = name
        if description:
            out["description"] = description
        return out

    def member(self, one: FieldDescriptor) -> Schema:
        """Return the schema of a field as a member of its object."""
        schema = self._bare(one)
        options = field_json(one)
        if _nullable(one):
            schema = nullable(schema)
        schema = described(schema, title_of(json_name(one)), self.comment(one.full_name))
        if options.default_value:
            schema["default"] = json.loads(options.default_value)
        if options.read_only:
            schema["readOnly"] = True
        if one.GetOptions().deprecated:
            schema["deprecated"] = True
        return schema

    def parameter(self, one: FieldDescriptor) -> Schema:
        """Return the schema of a field as a parameter: what a URL can say, so never null."""
        schema = described(self._bare(one), title_of(json_name(one)), "")
        if field_json(one).default_value:
            schema["default"] = json.loads(field_json(one).default_value)
        return schema

    def _bare(self, one: FieldDescriptor) -> Schema:
        options, rules = field_json(one), field_rules(one)
        if options.shown_as:
            return {"anyOf": [self.message(_sibling(one, name)) for name in options.shown_as]}
        if options.free_form:
            return {"additionalProperties": True, "type": "object"}
        if is_map(one):
            value = nested(one).fields_by_name["value"]
            extra = _from_rules(rules.map, _MAP_RULES)
            return {"additionalProperties": self._value(value, rules.map.values), "type": "object"} | extra
        if one.is_repeated:
            schema: Schema = {"items": self._value(one, rules.repeated.items), "type": "array"}
            return schema | _from_rules(rules.repeated, _LIST_RULES)
        return self._value(one, rules)

    def _value(self, one: FieldDescriptor, rules: validate_pb2.FieldRules) -> Schema:
        if one.message_type is not None:
            return self.message(one.message_type)
        if one.enum_type is not None:
            return self._enum(one.enum_type)
        return _scalar(one, rules)

    def _enum(self, enum: EnumDescriptor) -> Schema:
        if self._claim(enum.name, enum.full_name):
            schema: Schema = {"type": "string", "enum": list(enum_names(enum).public), "title": enum.name}
            description = self.comment(enum.full_name)
            self._schemas[enum.name] = schema | ({"description": description} if description else {})
        return reference(enum.name)


def _scalar(one: FieldDescriptor, rules: validate_pb2.FieldRules) -> Schema:
    if one.type == _F.TYPE_BYTES:
        return {"type": "string", "contentEncoding": "base64"}
    if one.cpp_type == _F.CPPTYPE_BOOL:
        return {"type": "boolean"}
    if one.cpp_type == _F.CPPTYPE_STRING:
        return {"type": "string"} | _string(rules.string)
    kind = rules.WhichOneof("type")
    limits = _from_rules(getattr(rules, kind), _NUMBER_RULES) if kind else {}
    span = integer_range(one)
    if span is None:
        return {"type": "number"} | limits
    # What the contract leaves open, the wire does not.
    if "minimum" not in limits and "exclusiveMinimum" not in limits:
        limits["minimum"] = span[0]
    if "maximum" not in limits and "exclusiveMaximum" not in limits:
        limits["maximum"] = span[1]
    return {"type": "integer"} | limits


def _sibling(one: FieldDescriptor, name: str) -> Descriptor:
    assert one.containing_type is not None
    file = one.containing_type.file
    return file.pool.FindMessageTypeByName(f"{file.package}.{name}")


def _required(one: FieldDescriptor) -> bool:
    options, rules = field_json(one), field_rules(one)
    if options.default_value or options.not_null:
        return False
    if rules.required or options.read_only:
        return True
    if one.is_repeated or (one.containing_oneof is not None):
        return False
    # Declared without `optional`, it is always there; a message is the exception that answers may still leave out.
    return one.message_type is None or one.message_type.full_name == "google.protobuf.Timestamp"


def _nullable(one: FieldDescriptor) -> bool:
    if field_rules(one).required or field_json(one).not_null:
        return False
    if one.is_repeated:
        return prints_null(one)
    if is_optional(one):
        return True
    return one.message_type is not None and one.message_type.full_name not in _WELL_KNOWN


def _from_rules(rules: Any, names: Mapping[str, str]) -> Schema:
    return {schema: _plain(getattr(rules, rule)) for rule, schema in names.items() if _is_set(rules, rule)}


def _is_set(rules: Any, name: str) -> bool:
    return name in rules.DESCRIPTOR.fields_by_name and bool(rules.HasField(name))


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _string(rules: validate_pb2.StringRules) -> Schema:
    out = _from_rules(rules, _STRING_RULES)
    allowed = list(getattr(rules, "in"))
    if allowed:
        out["enum"] = allowed
    for name in _FORMATS:
        if _is_set(rules, name) and getattr(rules, name):
            out["format"] = name
    return out
