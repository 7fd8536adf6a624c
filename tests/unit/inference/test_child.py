import socket
import subprocess
import sys
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from meshkit.worker.handlers import (
    HeldModel,
    Lender,
    Need,
    Output,
    OutputFile,
    TaskCancelled,
    TaskFailed,
    TaskHandler,
)
from modelkit.errors import ModelError, ModelErrorKind
from services.inference.child import BatchRunner, ChildSettings, _lender
from services.inference.tasktypes import DEFAULT_TYPES, load_handlers, parse_types
from services.inference.tasktypes.failures import explained


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

    families = ("a family",)

    def __init__(
        self,
        *outcomes: Output | Exception,
        raises: Exception | None = None,
        needs: Sequence[Need] = (),
        refuses: Exception | None = None,
    ) -> None:
        self._outcomes = outcomes
        self._raises = raises
        self._needs = needs
        self._refuses = refuses

    def needs(self, spec: CreateTask, task: Task) -> Sequence[Need]:
        if self._refuses is not None:
            refused, self._refuses = self._refuses, None
            raise refused
        return self._needs

    def run(self, batch: Sequence[Any], lent: Mapping[str, Any]) -> Sequence[Output | Exception]:
        self.lent = lent
        if self._raises is not None:
            raise self._raises
        return self._outcomes


class Shelf:
    """A lender that writes down what it is asked for."""

    device = "cpu"

    def __init__(self, refuses: Exception | None = None) -> None:
        self._refuses = refuses
        self.told: list[object] = []

    @contextmanager
    def lend(self, needs: Sequence[Need]) -> Iterator[Mapping[str, Any]]:
        if self._refuses is not None:
            raise self._refuses
        self.told.append(tuple(needs))
        yield {need.name: f"a {need.family}" for need in needs}
        self.told.append("back")

    def resident(self) -> Sequence[HeldModel]:
        return ()

    def free(self) -> None:
        self.told.append("free")


def bench(handler: Handler, lender: Lender | None = None) -> BatchRunner:
    return BatchRunner({TASK_TYPE_NOOP: cast("TaskHandler", handler)}, lender, explained)


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
    with pytest.raises(ValueError, match="NOPE"):
        parse_types(["NOPE"])


def test_the_threads_of_one_computation_reach_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    module = types.ModuleType("modelkit.residency")
    module.Models = lambda *_, **keywords: asked.update(keywords)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelkit.residency", module)
    handlers = load_handlers([TASK_TYPE_GENERATION])
    _lender(ChildSettings((TASK_TYPE_GENERATION,), 1, "a model", "cpu", 0, torch_threads=3), handlers.values())
    assert asked["threads"] == 3


def test_a_child_whose_handlers_need_no_models_imports_no_torch() -> None:
    """The whole child, from the command line of its parent to the answer of a job."""
    code = """
import socket, sys, threading
from atelier.inference.v1.child_pb2 import ChildBatch, ChildJob, ChildStop, FromChild, ToChild
from atelier.tasks.v1.noop_pb2 import CreateNoopTask
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from meshkit.worker import wire
from services.inference import child
child.die_with_parent = lambda parent: None
ours, theirs = socket.socketpair()
job = ChildJob(number=1, task=Task(attempt=1), spec=CreateTask(noop=CreateNoopTask(payload="hi")))
ours.sendall(b"".join(wire.pack(frame) for frame in (ToChild(run=ChildBatch(jobs=[job])), ToChild(stop=ChildStop()))))
settings = child.ChildSettings((%d,), 1, "a model", "auto", 0).command()[-1]
assert child.main([settings, "--fd", str(theirs.detach()), "--parent", "1"]) == 0
pipe, done = wire.BlockingPipe(ours, FromChild), None
while done is None:
    done = next((frame.done for frame in pipe.receive() if frame.HasField("done")), None)
heavy = ("torch", "numpy", "modelkit.residency")
print(done.output.result.noop.payload, [name for name in heavy if name in sys.modules])
"""
    ran = subprocess.run(
        [sys.executable, "-c", code % TASK_TYPE_NOOP], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.strip().splitlines()[-1] == "hi []"


def test_every_handler_names_the_families_of_its_needs() -> None:
    for handler in load_handlers(DEFAULT_TYPES).values():
        assert handler.families


def test_a_batch_is_lent_what_its_handler_needs_and_gives_it_back() -> None:
    needs = (Need("model", "flux"), Need("upscaler", "upscaler"))
    shelf, handler = Shelf(), Handler(TaskCancelled(), TaskCancelled(), needs=needs)
    bench(handler, shelf).execute([context()[0], context()[0]])
    assert handler.lent == {"model": "a flux", "upscaler": "a upscaler"}
    assert shelf.told == [needs, "back"]


def test_a_handler_that_needs_nothing_is_lent_nothing() -> None:
    shelf, handler = Shelf(), Handler(TaskCancelled())
    bench(handler, shelf).execute([context()[0]])
    assert handler.lent == {}
    assert shelf.told == []


def test_a_need_that_cannot_be_met_is_told_in_the_lenders_words() -> None:
    refused = ModelError("The model a needs 3 MiB.", ModelErrorKind.RESOURCE, retryable=True)
    [done] = bench(Handler(needs=(Need("model", "flux"),)), Shelf(refuses=refused)).execute([context()[0]])
    assert (done.failure.message, done.failure.category) == ("The model a needs 3 MiB.", ERROR_CATEGORY_RESOURCE)
    assert done.failure.retryable


def test_a_member_whose_needs_are_unknown_fails_without_the_others() -> None:
    refused = TaskFailed("config.model must be text.", ERROR_CATEGORY_VALIDATION, retryable=False)
    handler = Handler(Output(TaskResult(), (), 0.0), refuses=refused)
    first, second = bench(handler).execute([context()[0], context()[0]])
    assert first.failure.message == "config.model must be text."
    assert second.HasField("output")


def test_memory_that_ran_out_is_freed_after_the_models_are_back_even_where_the_handler_explained_it() -> None:
    failure = ModelError("Too little memory for a picture of this size.", ModelErrorKind.RESOURCE, retryable=True)
    failure.__cause__ = OutOfMemoryError()
    need, shelf = (Need("model", "flux"),), Shelf()
    [done] = bench(Handler(failure, needs=need), shelf).execute([context()[0]])
    assert done.failure.message == failure.message
    assert shelf.told == [need, "back", "free"]


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
