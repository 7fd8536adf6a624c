"""The JSON that webhooks carry is spelled as the gateway spells the same message."""

import json
from typing import Any

import pytest
from atelier.events.v1 import events_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor

from meshkit import eventjson
from meshkit.spelling import enum_names
from meshkit.transcoding.codec import Codecs

CODECS = Codecs()
EVENTS = [
    message
    for message in events_pb2.DESCRIPTOR.message_types_by_name.values()
    if "event_type" in message.fields_by_name
]
FREE_FORM = {"whole": 3, "part": 0.5, "none": None, "yes": True, "deep": {"list": [1, "two", [], {}]}, "big": 1e300}


def filled(message: Descriptor) -> Any:
    event: Any = message_factory.GetMessageClass(message)()
    for field in message.fields:
        if field.is_repeated:
            getattr(event, field.name).extend(["naïve", ""])
        elif field.message_type is None:
            values = {field.CPPTYPE_STRING: "naïve", field.CPPTYPE_DOUBLE: 12.5}
            setattr(event, field.name, values.get(field.cpp_type, 2))
        elif field.message_type.name == "Task":
            getattr(event, field.name).id = "hidden"
        elif field.message_type.name == "Timestamp":
            getattr(event, field.name).FromJsonString("2026-11-22T18:00:00.123987Z")
        else:
            getattr(event, field.name).update(FREE_FORM)
    return event


@pytest.mark.parametrize("message", EVENTS, ids=lambda message: message.name)
def test_an_event_is_spelled_as_the_gateway_spells_it(message: Descriptor) -> None:
    for event in (filled(message), message_factory.GetMessageClass(message)()):
        told = json.loads(eventjson.encode(event))
        assert told == CODECS.of(message).encode(event)
        assert list(told) == [field.name for field in message.fields if field.name != "task"]


def test_every_type_of_event_has_the_gateways_spelling() -> None:
    numbers = enum_names(events_pb2.EventType.DESCRIPTOR).by_number
    assert set(numbers) == {value.number for value in events_pb2.EventType.DESCRIPTOR.values if value.number}
    assert numbers[events_pb2.EVENT_TYPE_TASK_STATUS_UPDATE] == "task_status_update"
