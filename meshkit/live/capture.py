"""What capture tells listeners: its events are the messages of `live.proto` themselves, each type on its subject."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from meshkit.live.registry import descriptor_of, facts, messages

# What is read of the stream of events.
SUBJECTS = ("atelier.capture.v1.*.*",)
CHANNELS = frozenset({"detections", "events", "alerts", "cameras"})
_PREFIX = "atelier.capture.v1."


def subject_of(message: Message) -> tuple[str, str]:
    """Return the subject of a message, and its type.

    Raises:
        ValueError: Capture does not send such messages.
    """
    said = facts(descriptor_of(message))
    if said.channel not in CHANNELS:
        raise ValueError(f"{type(message).__name__} is no message of capture")
    return f"{_PREFIX}{said.type}", said.type


def read(subject: str, payload: bytes) -> Message | None:
    """Return what an event of capture tells a listener; None for another's event.

    Raises:
        google.protobuf.message.DecodeError: The payload is no such message.
    """
    if not subject.startswith(_PREFIX):
        return None
    made = _classes().get(subject.removeprefix(_PREFIX))
    return made.FromString(payload) if made is not None else None


@cache
def _classes() -> Mapping[str, type[Message]]:
    return {type_: GetMessageClass(one) for type_, one in messages().items() if facts(one).channel in CHANNELS}
