"""Which messages listeners get: read from the contracts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from atelier.events.v1 import live_pb2
from atelier.options.v1 import options_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

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
