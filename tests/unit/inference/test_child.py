import socket
import sys
import threading
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

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
from atelier.tasks.v1.enums_pb2 import (
    ERROR_CATEGORY_INTERNAL,
    ERROR_CATEGORY_RESOURCE,
    ERROR_CATEGORY_VALIDATION,
    TASK_TYPE_GENERATION,
    TASK_TYPE_NOOP,
)
from atelier.tasks.v1.noop_pb2 import CreateNoopTask, NoopTaskPublic
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.errors import invalid
from meshkit.worker import wire
from meshkit.worker.child import ChildRuntime, JobContext
from meshkit.worker.handlers import Output, OutputFile, TaskCancelled, TaskFailed, TaskHandler
from services.inference.child import BatchRunner, ChildSettings, _models
from services.inference.tasktypes import load_handlers, parse_types, type_name


def context(folder: Path = Path("/nowhere"), attempt: int = 1, **noop: Any) -> tuple[JobContext, list[FromChild]]:
    sent: list[FromChild] = []
    job = ChildJob(
        number=1,
        job_id="j",
        spec=CreateTask(noop=CreateNoopTask(**noop)),
        task=Task(attempt=attempt),
        folder=str(folder),
    )
    return JobContext(job, sent.append), sent


class Handler:
    """Gives the outcome it is told to give."""

    def __init__(self, *outcomes: Output | Exception, raises: Exception | None = None) -> None:
        self._outcomes = outcomes
        self._raises = raises

    def run(self, batch: Sequence[Any], models: object) -> Sequence[Output | Exception]:
        if self._raises is not None:
            raise self._raises
        return self._outcomes


def bench(handler: Handler) -> BatchRunner:
    return BatchRunner({TASK_TYPE_NOOP: cast("TaskHandler", handler)}, None)


def test_an_output_is_told_with_its_files_and_the_devices_time() -> None:
    output = Output(TaskResult(), (OutputFile("a.png", "image/png", "result_path"), OutputFile("b", "x/y", None)), 1.5)
    [done] = bench(Handler(output)).execute([context()[0]])
    assert [(file.name, file.field) for file in done.output.files] == [("a.png", "result_path"), ("b", "")]
    assert done.device_seconds == 1.5


class OutOfMemoryError(RuntimeError):
    """Named as torch's is."""


@pytest.mark.parametrize(
    ("error", "category", "retryable", "message"),
    [
        (
            TaskFailed("said so", ERROR_CATEGORY_VALIDATION, retryable=False),
            ERROR_CATEGORY_VALIDATION,
            False,
            "said so",
        ),
        (invalid("x", "is wrong"), ERROR_CATEGORY_VALIDATION, False, "is wrong"),
        (MemoryError(), ERROR_CATEGORY_RESOURCE, True, "out of memory"),
        (OutOfMemoryError("CUDA"), ERROR_CATEGORY_RESOURCE, True, "out of memory"),
        (ZeroDivisionError("secret text"), ERROR_CATEGORY_INTERNAL, True, "error "),
    ],
)
@pytest.mark.parametrize("raised", [True, False])
def test_an_error_is_told_without_the_librarys_text(
    error: Exception, category: int, retryable: bool, message: str, raised: bool
) -> None:
    handler = Handler(raises=error) if raised else Handler(error)
    [done] = bench(handler).execute([context()[0]])
    assert (done.failure.category, done.failure.retryable) == (category, retryable)
    assert message in done.failure.message
    assert "secret" not in done.failure.message


def test_a_handler_that_forgets_an_outcome_fails_its_batch() -> None:
    outcomes = bench(Handler(TaskCancelled())).execute([context()[0], context()[0]])
    assert [done.failure.category for done in outcomes] == [ERROR_CATEGORY_INTERNAL] * 2


def test_a_type_without_a_handler_is_a_fault_of_the_mesh() -> None:
    [done] = BatchRunner({}, None).execute([context()[0]])
    assert done.failure.category == ERROR_CATEGORY_INTERNAL


@pytest.fixture
def noop() -> BatchRunner:
    return BatchRunner(load_handlers([TASK_TYPE_NOOP]), None)


def test_noop_returns_its_payload_and_writes_its_bytes(noop: BatchRunner, tmp_path: Path) -> None:
    [done] = noop.execute([context(tmp_path, payload="hi", result_bytes=10)[0]])
    assert done.output.result.noop.payload == "hi"
    assert [(file.name, file.field) for file in done.output.files] == [("result.bin", "result_path")]
    assert (tmp_path / "result.bin").stat().st_size == 10


def test_noop_reports_the_last_of_its_steps(noop: BatchRunner) -> None:
    job, sent = context(steps=50)
    noop.execute([job])
    assert (sent[-1].progress.step, sent[-1].progress.total) == (50, 50)
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


def test_settings_survive_the_command_line() -> None:
    settings = ChildSettings((TASK_TYPE_NOOP,), 3, "a model", "cpu", 5, 2, ("x",), model_download=True)
    assert ChildSettings.parse(settings.command()[-1]) == settings


def test_types_are_named_as_documented() -> None:
    assert parse_types(["noop", "GENERATION"]) == (TASK_TYPE_NOOP, TASK_TYPE_GENERATION)
    assert TASK_TYPE_NOOP not in parse_types([])
    assert type_name(TASK_TYPE_GENERATION) == "GENERATION"
    with pytest.raises(ValueError, match="NOPE"):
        parse_types(["NOPE"])


def test_the_threads_of_one_computation_reach_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    module = types.ModuleType("modelkit.residency")
    module.Models = lambda *_, **keywords: asked.update(keywords)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelkit.residency", module)
    _models(ChildSettings((TASK_TYPE_GENERATION,), 1, "a model", "cpu", 0, torch_threads=3))
    assert asked["threads"] == 3


def test_batches_that_come_together_run_at_once_and_the_rest_after_them() -> None:
    """As many as there are threads: each of the first three waits until all three run."""
    together = threading.Barrier(3, timeout=10)

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
