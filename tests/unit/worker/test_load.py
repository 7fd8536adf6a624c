"""What a worker tells of itself in its heartbeats."""

import os
import resource
import time

import psutil
import pytest

from meshkit.validation import check
from meshkit.worker.load import ProcessTree, WorkerGauge


def test_a_worker_tells_what_it_takes_and_has_done() -> None:
    load = WorkerGauge().read({"GENERATION": 3})
    check(load)
    assert load.pid == os.getpid()
    assert load.memory_bytes >= 10_000_000
    assert dict(load.completed) == {"GENERATION": 3}
    assert load.rusage["utime"] == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_utime, abs=5)
    assert abs(load.started_at.seconds - psutil.Process().create_time()) < 2
    assert load.started_at.seconds < time.time()


def test_a_worker_with_very_many_children_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProcessTree, "child_pids", list(range(2, 1000)))
    load = WorkerGauge().read({})
    check(load)
    assert len(load.child_pids) == 256
