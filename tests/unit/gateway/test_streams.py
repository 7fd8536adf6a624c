"""Messages as events."""

from atelier.tasks.v1 import tasks_service_pb2

from services.gateway.streams import event, event_shape
from tests.unit.transcoding.conftest import Contract


def test_an_event_carries_name_version_and_data() -> None:
    assert event("task", b'{"a":1}', 7) == b'event: task\nid: 7\ndata: {"a":1}\n\n'
    assert event("task", b"{}") == b"event: task\ndata: {}\n\n"


def test_the_version_is_that_of_what_a_message_shows() -> None:
    message = tasks_service_pb2.WatchTaskResponse()
    message.task.version = 9
    shape = event_shape(message.DESCRIPTOR)
    assert (shape.name, shape.version(message)) == ("task", 9)


def test_a_message_without_a_version_has_none(shop: Contract) -> None:
    shape = event_shape(shop.message("SendResponse"))
    assert (shape.name, shape.version(shop.new("SendResponse"))) == ("parcel", 0)
    assert event_shape(shop.message("CountResponse")).name == "message"
