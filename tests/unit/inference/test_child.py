import subprocess
import sys
import types
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import pytest
from atelier.tasks.v1.enums_pb2 import (
    ERROR_CATEGORY_RESOURCE,
    TASK_TYPE_GENERATION,
    TASK_TYPE_NOOP,
    TASK_TYPE_PHOTO_DETECTION,
)
from structlog.testing import capture_logs

from meshkit.worker.handlers import Need
from modelkit.errors import ModelError, ModelErrorKind
from services.inference.child import ChildSettings, _check, _lender
from services.inference.tasktypes import load_handlers, parse_types
from services.inference.tasktypes.failures import explained
from tests.unit.worker.batches import Handler, Shelf, batch_runner, context

if TYPE_CHECKING:
    from modelkit.residency import Models


class OutOfMemoryError(RuntimeError):
    """Named as torch's is."""


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
    module.Models = lambda *_, **keywords: asked.update(keywords)  # type: ignore[attr-defined]  # a module made here
    monkeypatch.setitem(sys.modules, "modelkit.residency", module)
    handlers = load_handlers([TASK_TYPE_GENERATION])
    _lender(ChildSettings((TASK_TYPE_GENERATION,), 1, "a model", "cpu", 0, torch_threads=3), handlers.values())
    assert asked["threads"] == 3


class Shelved:
    """Lacks the default models of some families."""

    def __init__(self, *missing: str) -> None:
        self._missing = set(missing)

    def missing(self, families: Iterable[str]) -> ModelError | None:
        if not self._missing & set(families):
            return None
        return ModelError("The model of this worker is not on this machine.", ModelErrorKind.RESOURCE)


def test_a_child_starts_while_one_of_its_types_has_its_models() -> None:
    handlers = load_handlers([TASK_TYPE_GENERATION, TASK_TYPE_PHOTO_DETECTION, TASK_TYPE_NOOP]).values()
    _check(cast("Models", Shelved()), handlers)
    _check(cast("Models", Shelved("likeness")), handlers)
    with capture_logs() as logs:
        _check(cast("Models", Shelved("flux")), handlers)
    assert [line["task_types"] for line in logs] == [["TASK_TYPE_GENERATION"]]
    with pytest.raises(ModelError, match="not on this machine"):
        _check(cast("Models", Shelved("flux", "vision")), handlers)


def test_a_child_whose_handlers_need_no_models_imports_no_torch() -> None:
    """The whole child, from the command line of its parent to the answer of a job."""
    code = """
import socket, sys, threading
from atelier.inference.v1.child_pb2 import ChildBatch, ChildJob, ChildStop, FromChild, ToChild
from atelier.tasks.v1.noop_pb2 import CreateNoopTask
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from meshkit import wire
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
    for handler in load_handlers(parse_types([])).values():
        assert handler.families


def test_a_need_that_cannot_be_met_is_told_in_the_lenders_words() -> None:
    refused = ModelError("The model a needs 3 MiB.", ModelErrorKind.RESOURCE, retryable=True)
    [done] = batch_runner(Handler(needs=(Need("model", "flux"),)), Shelf(refuses=refused), explained).execute(
        [context()[0]]
    )
    assert (done.failure.message, done.failure.category) == ("The model a needs 3 MiB.", ERROR_CATEGORY_RESOURCE)
    assert done.failure.retryable


def test_memory_that_ran_out_is_freed_after_the_models_are_back_even_where_the_handler_explained_it() -> None:
    failure = ModelError("Too little memory for a picture of this size.", ModelErrorKind.RESOURCE, retryable=True)
    failure.__cause__ = OutOfMemoryError()
    need, shelf = (Need("model", "flux"),), Shelf()
    [done] = batch_runner(Handler(failure, needs=need), shelf, explained).execute([context()[0]])
    assert done.failure.message == failure.message
    assert shelf.told == [need, "back", "free"]
