"""Which messages listeners get: read from the contracts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import orjson
from atelier.events.v1 import live_pb2
from atelier.options.v1 import options_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import Message

from meshkit.transcoding.schemas import Comments, Components, Schema

CHANNELS = ("detections", "events", "alerts", "cameras", "jobs", "system")
JOBS, SYSTEM = "jobs", "system"


def facts(message: Descriptor) -> options_pb2.LiveFacts:
    """Return what a message is to listeners."""
    return message.GetOptions().Extensions[options_pb2.live]


def descriptor_of(message: Message) -> Descriptor:
    """Return the descriptor of a message."""
    return cast("Descriptor", message.DESCRIPTOR)


def messages() -> Mapping[str, Descriptor]:
    """Return the messages by their types, in the order of these."""
    found = {facts(one).type: one for one in live_pb2.DESCRIPTOR.message_types_by_name.values()}
    # Others are parts of these.
    return dict(sorted((type_, one) for type_, one in found.items() if type_))


def document(image: FileDescriptorSet) -> dict[str, Any]:
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
