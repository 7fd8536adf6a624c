import socket
import threading
from collections.abc import Sequence

import pytest
from atelier.inference.v1.child_pb2 import (
    ChildBatch,
    ChildDone,
    ChildHello,
    ChildJob,
    ChildOutput,
    ChildStop,
    FromChild,
    ToChild,
)
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_VALIDATION
from atelier.tasks.v1.noop_pb2 import NoopTaskPublic
from atelier.tasks.v1.task_pb2 import TaskResult

from meshkit import wire
from meshkit.worker.child import ChildRuntime
from meshkit.worker.job_context import JobContext


def test_batches_that_come_together_run_at_once_and_the_rest_after_them() -> None:
    """As many as there are threads: each of the first three waits until all three run."""
    together = threading.Barrier(3, timeout=60)

    def execute(batch: Sequence[JobContext]) -> list[ChildDone]:
        if batch[0].number <= 3:
            together.wait()
        return [ChildDone(output=ChildOutput()) for _ in batch]

    ours, theirs = socket.socketpair()
    with ours, theirs:
        runtime = ChildRuntime(theirs, execute=execute, resident=lambda: None, threads=3)
        serving = threading.Thread(target=runtime.serve, args=(ChildHello(),), daemon=True)
        serving.start()
        frames = [ToChild(run=ChildBatch(jobs=[ChildJob(number=number)])) for number in range(1, 21)]
        # What was asked before the stop is done before the end.
        ours.sendall(b"".join(wire.pack(frame) for frame in [*frames, ToChild(stop=ChildStop())]))
        pipe = wire.BlockingPipe(ours, FromChild)
        told: list[int] = []
        while len(told) < 20:
            told += [frame.done.number for frame in pipe.receive() or [] if frame.HasField("done")]
        serving.join(5)
        assert not serving.is_alive()
    assert sorted(told) == list(range(1, 21))


def test_a_result_that_no_frame_carries_is_told_as_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_FRAME_BYTES", 1000)
    ours, theirs = socket.socketpair()
    large = ChildDone(output=ChildOutput(result=TaskResult(noop=NoopTaskPublic(payload="x" * 2000))))
    runtime = ChildRuntime(theirs, execute=lambda batch: [large for _ in batch], resident=lambda: None, threads=1)
    serving = threading.Thread(target=runtime.serve, args=(ChildHello(),), daemon=True)
    serving.start()
    pipe = wire.BlockingPipe(ours, FromChild)
    pipe.send(wire.pack(ToChild(run=ChildBatch(jobs=[ChildJob(number=7)]))))
    frames = [frame for frame in pipe.receive() or [] if frame.HasField("done")]
    while not frames:
        frames = [frame for frame in pipe.receive() or [] if frame.HasField("done")]
    assert frames[0].done.number == 7
    assert frames[0].done.failure.category == ERROR_CATEGORY_VALIDATION
    pipe.send(wire.pack(ToChild(stop=ChildStop())))
    serving.join(5)
    assert not serving.is_alive()
    ours.close()
    theirs.close()
