"""What the child tells of files: each is the parent's own, also where one step is kept twice."""

import json
from pathlib import Path

from atelier.inference.v1.child_pb2 import ChildJob, ChildMessage

from meshkit.worker.job_context import JobContext
from modelkit.training.watching import Stop
from services.training.trainer.running import JobWatcher


def test_a_state_that_is_kept_twice_is_two_things_to_the_parent(tmp_path: Path) -> None:
    said: list[ChildMessage] = []
    watcher = JobWatcher(JobContext(ChildJob(), lambda _: None, say=said.append), tmp_path)
    state = tmp_path / "step-3"
    state.mkdir()
    (state / "state.json").write_text("{}")
    watcher.kept_state(3, state)
    [first] = json.loads(said[0].text)["files"].values()
    watcher.kept_state(3, state)
    [second] = json.loads(said[1].text)["files"].values()
    (tmp_path / first).unlink()
    assert (tmp_path / second).read_text() == "{}"
    assert (state / "state.json").exists()


def test_a_training_is_stopped_by_a_pause_and_dropped_by_a_cancel(tmp_path: Path) -> None:
    context = JobContext(ChildJob(), lambda _: None)
    watcher = JobWatcher(context, tmp_path)
    assert watcher.stopping() is None
    context.pause()
    assert watcher.stopping() is Stop.DRAIN
    context.cancel()
    assert watcher.stopping() is Stop.CANCEL
