"""What is said of the messages that listeners get: their schemas and examples, read from the contracts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from meshkit.live.registry import CHANNELS, facts, messages
from meshkit.transcoding.schemas import Comments, Components, Schema


def document_of(image: FileDescriptorSet) -> dict[str, Any]:
    """Return what is said of all messages.

    Args:
        image: The contracts with their comments.
    """
    comments = Comments(image)
    types = [_entry(type_, one, comments) for type_, one in messages().items()]
    return {
        "event_types": types,
        "channels": list(CHANNELS),
        "total_count": len(types),
        "deprecated_count": sum(one["deprecated"] for one in types),
    }


def _entry(type_: str, message: Descriptor, comments: Comments) -> dict[str, Any]:
    said = facts(message)
    return {
        "type": type_,
        "channel": said.channel or None,
        "description": comments.of(message.full_name),
        "deprecated": said.deprecated,
        "payload_schema": _schema(message, comments),
        "example": orjson.loads(said.example) if said.example else None,
        "replacement": said.replacement or None,
    }


def _schema(message: Descriptor, comments: Comments) -> Schema:
    components = Components(comments)
    reference = components.message(message)
    inlined: Schema = _inlined(reference, components.schemas)
    return inlined


def _inlined(value: Any, schemas: Mapping[str, Schema]) -> Any:
    """Return a schema with others in the places where it refers to them: it is to be read alone."""
    if isinstance(value, dict):
        if "$ref" in value:
            return _inlined(schemas[value["$ref"].rpartition("/")[2]], schemas)
        return {name: _inlined(one, schemas) for name, one in value.items()}
    if isinstance(value, list):
        return [_inlined(one, schemas) for one in value]
    return value
