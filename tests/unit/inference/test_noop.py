from pathlib import Path

import pytest
from atelier.tasks.v1.enums_pb2 import TASK_TYPE_NOOP

from meshkit.worker.batch_runner import BatchRunner
from meshkit.worker.pairs import Pair
from services.inference.tasktypes import load_handlers
from tests.unit.worker.batches import context


@pytest.fixture
def noop() -> BatchRunner:
    return BatchRunner({Pair(TASK_TYPE_NOOP): load_handlers([TASK_TYPE_NOOP])[TASK_TYPE_NOOP]})


def test_noop_returns_its_payload_and_writes_its_bytes(noop: BatchRunner, tmp_path: Path) -> None:
    [done] = noop.execute([context(tmp_path, payload="hi", result_bytes=10)[0]])
    assert done.output.result.noop.payload == "hi"
    assert [(file.name, file.field) for file in done.output.files] == [("result.bin", "result_path")]
    assert (tmp_path / "result.bin").stat().st_size == 10


def test_noop_reports_the_last_of_its_steps(noop: BatchRunner) -> None:
    job, sent = context(steps=50)
    noop.execute([job])
    assert (sent[-1].step, sent[-1].total) == (50, 50)
    assert len(sent) < 50


@pytest.mark.parametrize(("attempt", "ends"), [(1, "failure"), (2, "failure"), (3, "output")])
def test_noop_fails_as_many_attempts_as_asked(noop: BatchRunner, attempt: int, ends: str) -> None:
    [done] = noop.execute([context(attempt=attempt, failures=2)[0]])
    assert done.WhichOneof("outcome") == ends


def test_noop_stops_between_steps_when_cancelled(noop: BatchRunner) -> None:
    job, _ = context(steps=1000, step_ms=1000)
    job.cancel()
    [done] = noop.execute([job])
    assert done.WhichOneof("outcome") == "cancelled"


def test_noop_misbehaves_on_its_first_attempt_alone(noop: BatchRunner) -> None:
    [done] = noop.execute([context(attempt=2, fault="exit")[0]])
    assert done.WhichOneof("outcome") == "output"
