"""Requests that are no message of their type."""

import pytest
from atelier.tasks.v1.tasks_service_pb2 import GetTaskRequest

from meshkit.decoding import UNREADABLE, or_unreadable, require_readable
from meshkit.errors import ErrorKind, MeshError


def test_a_decoder_passes_messages_and_marks_what_is_none() -> None:
    decode = or_unreadable(GetTaskRequest.FromString)
    assert decode(GetTaskRequest(task_id="a").SerializeToString()) == GetTaskRequest(task_id="a")
    assert decode(b"\xff" * 12) is UNREADABLE


def test_what_cannot_be_read_is_refused_and_a_message_is_not() -> None:
    require_readable(GetTaskRequest())
    with pytest.raises(MeshError) as caught:
        require_readable(UNREADABLE)
    assert caught.value.kind is ErrorKind.INVALID
