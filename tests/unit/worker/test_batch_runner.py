from typing import cast

import pytest
from atelier.tasks.v1.enums_pb2 import (
    ERROR_CATEGORY_INTERNAL,
    ERROR_CATEGORY_RESOURCE,
    ERROR_CATEGORY_VALIDATION,
    PROVIDER_TYPE_SARTIQ_ULTIMATE_REFINER,
    TASK_TYPE_NOOP,
)
from atelier.tasks.v1.task_pb2 import TaskResult

from meshkit.errors import invalid
from meshkit.worker.batch_runner import BatchRunner
from meshkit.worker.handlers import (
    Lender,
    Need,
    Output,
    OutputFile,
    TaskCancelled,
    TaskFailed,
    TaskHandler,
)
from meshkit.worker.pairs import Pair
from tests.unit.worker.batches import Handler, Shelf, batch_runner, context


def test_an_output_is_told_with_its_files_and_the_devices_time() -> None:
    output = Output(TaskResult(), (OutputFile("a.png", "image/png", "result_path"), OutputFile("b", "x/y", None)), 1.5)
    [done] = batch_runner(Handler(output)).execute([context()[0]])
    assert [(file.name, file.field) for file in done.output.files] == [("a.png", "result_path"), ("b", "")]
    assert done.device_seconds == 1.5
    assert list(done.output.errors) == []
    [done] = batch_runner(Handler(Output(TaskResult(), (), 0.0, ("b: too dark",)))).execute([context()[0]])
    assert list(done.output.errors) == ["b: too dark"]


def test_each_end_tells_its_device_and_what_it_took() -> None:
    handler = Handler(Output(TaskResult(), (), 1.5), TaskCancelled(), needs=[Need("base", "flux")])
    made, cancelled = batch_runner(handler, Shelf()).execute([context()[0], context()[0]])
    assert [done.device for done in (made, cancelled)] == ["cpu", "cpu"]
    assert made.device_seconds == 1.5
    assert cancelled.device_seconds > 0  # its share of the call: nobody else measures it
    raising = Handler(raises=TaskFailed("no", ERROR_CATEGORY_RESOURCE, retryable=True))
    [failed] = batch_runner(raising).execute([context()[0]])
    assert (failed.device, failed.device_seconds > 0) == ("cpu", True)


def test_a_job_whose_handler_was_not_called_has_used_nothing() -> None:
    [refused] = batch_runner(Handler(refuses=invalid("x", "is wrong"))).execute([context()[0]])
    assert (refused.device, refused.device_seconds) == ("", 0.0)


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
    [done] = batch_runner(handler).execute([context()[0]])
    assert (done.failure.category, done.failure.retryable) == (category, retryable)
    assert message in done.failure.message
    assert "secret" not in done.failure.message


def test_a_handler_that_forgets_an_outcome_fails_its_batch() -> None:
    outcomes = batch_runner(Handler(TaskCancelled())).execute([context()[0], context()[0]])
    assert [done.failure.category for done in outcomes] == [ERROR_CATEGORY_INTERNAL] * 2


def test_a_type_without_a_handler_is_a_fault_of_the_mesh() -> None:
    [done] = BatchRunner({}, None).execute([context()[0]])
    assert done.failure.category == ERROR_CATEGORY_INTERNAL


def test_a_batch_is_lent_what_its_handler_needs_and_gives_it_back() -> None:
    needs = (Need("model", "flux"), Need("upscaler", "upscaler"))
    shelf, handler = Shelf(), Handler(TaskCancelled(), TaskCancelled(), needs=needs)
    batch_runner(handler, shelf).execute([context()[0], context()[0]])
    assert handler.lent == {"model": "a flux", "upscaler": "a upscaler"}
    assert shelf.told == [needs, "back"]


def test_a_handler_that_needs_nothing_is_lent_nothing() -> None:
    shelf, handler = Shelf(), Handler(TaskCancelled())
    batch_runner(handler, shelf).execute([context()[0]])
    assert handler.lent == {}
    assert shelf.told == []


def test_a_member_whose_needs_are_unknown_fails_without_the_others() -> None:
    refused = TaskFailed("config.model must be text.", ERROR_CATEGORY_VALIDATION, retryable=False)
    handler = Handler(Output(TaskResult(), (), 0.0), refuses=refused)
    first, second = batch_runner(handler).execute([context()[0], context()[0]])
    assert first.failure.message == "config.model must be text."
    assert second.HasField("output")


def test_a_handler_is_chosen_by_the_provider_too() -> None:
    local, called = Handler(Output(TaskResult(), (), 1.0)), Handler(Output(TaskResult(), (), 2.0))
    runner = BatchRunner(
        {
            Pair(TASK_TYPE_NOOP): cast("TaskHandler", local),
            Pair(TASK_TYPE_NOOP, PROVIDER_TYPE_SARTIQ_ULTIMATE_REFINER): cast("TaskHandler", called),
        }
    )
    job, _ = context()
    job.task.provider_type = PROVIDER_TYPE_SARTIQ_ULTIMATE_REFINER
    assert [runner.execute([each])[0].device_seconds for each in (context()[0], job)] == [1.0, 2.0]


def test_the_parent_is_told_of_loans_and_of_what_took_how_long() -> None:
    runner = batch_runner(
        Handler(Output(TaskResult(), (), 0.0), needs=[Need("m", "flux"), Need("v", "vision")]),
        cast("Lender", Shelf(resident=["vision"])),
    )
    untraced, traced = context()[0], context()[0]
    traced.traced, traced.traceparent = True, f"00-{'a' * 32}-{'b' * 16}-01"
    [done] = runner.execute([untraced])
    assert [(loan.model, loan.resident) for loan in done.loans] == [("the-flux", False), ("the-vision", True)]
    assert list(done.spans) == []
    [done] = runner.execute([traced])
    whole, *parts = done.spans
    assert (whole.name, whole.parent_id) == ("child NOOP", "b" * 16)
    assert [(part.name, part.parent_id) for part in parts] == [
        ("lend models", whole.span_id),
        ("run", whole.span_id),
    ]
    assert all(whole.began_ns <= part.began_ns <= part.ended_ns <= whole.ended_ns for part in parts)
