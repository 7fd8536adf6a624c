import pytest
from atelier.inference.v1.child_pb2 import ChildJob, ToChild

from meshkit import wire
from meshkit.worker.child_pipe import ChildPipe
from meshkit.worker.supervisor import ChildLimits, ChildState, ChildSupervisor


async def test_a_batch_that_no_frame_carries_is_refused_and_never_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_FRAME_BYTES", 1000)
    limits = ChildLimits(memory_bytes=1 << 30, step_seconds=1, first_step_seconds=1, start_seconds=1, sample_seconds=1)
    supervisor = ChildSupervisor(["true"], limits=limits)
    supervisor._state, supervisor._pipe = ChildState.READY, ChildPipe(lambda _: None)
    jobs = [ChildJob(number=1, job_id="x" * 2000)]
    with pytest.raises(wire.WireError):
        await supervisor.run(jobs, lambda _: None)
    assert not supervisor._running


async def test_a_cancel_in_the_moment_of_the_handover_follows_the_job() -> None:
    supervisor = ChildSupervisor(["true"], limits=ChildLimits(memory_bytes=1 << 30))
    pipe = ChildPipe(lambda _: None)
    supervisor._state, supervisor._pipe = ChildState.READY, pipe
    supervisor.begin([ChildJob(number=7)], lambda _: None)
    supervisor.cancel(7)
    frames = wire.FrameDecoder(ToChild).feed(b"".join(pipe._unsent))
    assert [frame.WhichOneof("frame") for frame in frames] == ["run", "cancel"]
    assert frames[1].cancel.number == 7
