import socket

import pytest
from atelier.inference.v1.child_pb2 import (
    ChildBatch,
    ChildCancel,
    ChildDone,
    ChildFailure,
    ChildHello,
    ChildJob,
    ChildMessage,
    ChildPause,
    ChildProgress,
    FromChild,
    ToChild,
)
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_TIMEOUT, TASK_TYPE_NOOP
from hypothesis import given
from hypothesis import strategies as st

from meshkit import wire
from meshkit.wire import BlockingPipe, FrameDecoder, WireError, pack

# What is on the wire between two processes of one release is still a format: these bytes say when it changes.
SNAPSHOTS = [
    (
        ToChild(run=ChildBatch(jobs=[ChildJob(number=7, job_id="j", folder="/f", inputs={"a": "/f/a"})])),
        "000000180a160a1408071201" + "6a" + "2a022f66" + "32090a01611204" + "2f662f61",
    ),
    (ToChild(cancel=ChildCancel(number=7)), "0000000412020807"),
    (ToChild(pause=ChildPause(number=7)), "0000000422020807"),
    (ToChild(message=ChildMessage(number=7, kind="k", text="1")), "0000000a2a08080712016b1a0131"),
    (FromChild(message=ChildMessage(number=7, kind="k", text="1")), "0000000a2a08080712016b1a0131"),
    (FromChild(hello=ChildHello(task_types=[TASK_TYPE_NOOP], device="cpu")), "0000000a0a080a01631203637075"),
    (FromChild(progress=ChildProgress(number=7, step=1, total=4)), "0000000812060807100118" + "04"),
    (
        FromChild(done=ChildDone(number=7, failure=ChildFailure(message="no", category=ERROR_CATEGORY_TIMEOUT))),
        "0000000c1a0a08071a060a026e6f1004",
    ),
]


@pytest.mark.parametrize(("message", "expected"), SNAPSHOTS, ids=lambda value: None)
def test_frames_are_written_as_they_always_were(message: ToChild | FromChild, expected: str) -> None:
    assert pack(message).hex() == expected


@given(st.lists(st.integers(min_value=0, max_value=2**40), min_size=1, max_size=8), st.data())
def test_frames_arrive_whole_however_the_stream_is_cut(numbers: list[int], data: st.DataObject) -> None:
    messages = [ToChild(cancel=ChildCancel(number=number)) for number in numbers]
    stream = b"".join(pack(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    decoder, received = FrameDecoder(ToChild), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += decoder.feed(stream[start:stop])
    assert received == messages


def test_a_length_above_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(WireError):
        FrameDecoder(ToChild).feed(b"\xff\xff\xff\xff")


def test_a_body_that_is_no_message_is_refused() -> None:
    with pytest.raises(WireError):
        FrameDecoder(ToChild).feed(b"\x00\x00\x00\x02\xff\xff")


def test_a_message_above_the_limit_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_FRAME_BYTES", 8)
    with pytest.raises(WireError):
        pack(FromChild(hello=ChildHello(device="a device with a long name")))


def test_a_pipe_receives_what_came_and_then_the_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pipe = BlockingPipe(theirs, ToChild)
        ours.sendall(pack(ToChild(cancel=ChildCancel(number=1))))
        assert pipe.receive() == [ToChild(cancel=ChildCancel(number=1))]
        ours.close()
        assert pipe.receive() is None
