import sys
import types
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

import pytest
from atelier.tasks.v1.enums_pb2 import (
    PROVIDER_TYPE_FAL_STANDARD,
    PROVIDER_TYPE_VERTEX,
    TASK_TYPE_EDITING,
    TASK_TYPE_GENERATION,
    TaskType,
)
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.images.checks import ImageChecks
from meshkit.worker.handlers import CallHandler, InputRef, Output, TaskContext
from meshkit.worker.pairs import Pair
from services.inference import providers
from services.inference.config import InferenceSettings
from services.inference.providers.kit import ProviderKit


class Handler:
    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        return ()

    async def run(self, context: TaskContext) -> Output:
        return Output(TaskResult(), (), 0.0)


KIT = ProviderKit.from_settings(InferenceSettings(), ImageChecks(), AsyncExitStack())
GENERATION, EDITING, IMAGEN = Handler(), Handler(), Handler()


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two providers as a release would have them, and no others: a module each, a line each."""
    monkeypatch.setattr(providers, "_MODULES", {})

    def register(name: str, handlers: Mapping[TaskType.ValueType, CallHandler]) -> None:
        module = types.ModuleType(f"throwaway_{name.lower()}")
        module.handlers = lambda kit: handlers  # type: ignore[attr-defined] # a module made here
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(providers._MODULES, name, module.__name__)

    register("FAL_STANDARD", {TASK_TYPE_GENERATION: GENERATION, TASK_TYPE_EDITING: EDITING})
    register("VERTEX", {TASK_TYPE_GENERATION: IMAGEN})


def test_calls_are_grouped_by_the_queues_that_the_contract_declares() -> None:
    works = providers.load_calls(("LOCAL", "FAL_STANDARD", "VERTEX"), 7, KIT)
    assert {work.queue: (dict(work.handlers), work.slots) for work in works} == {
        "fal": (
            {
                Pair(TASK_TYPE_GENERATION, PROVIDER_TYPE_FAL_STANDARD): GENERATION,
                Pair(TASK_TYPE_EDITING, PROVIDER_TYPE_FAL_STANDARD): EDITING,
            },
            7,
        ),
        "vertex": ({Pair(TASK_TYPE_GENERATION, PROVIDER_TYPE_VERTEX): IMAGEN}, 7),
    }


def test_the_device_alone_calls_nobody() -> None:
    assert providers.load_calls(("LOCAL",), 7, KIT) == ()
    assert InferenceSettings().worker_providers == ("LOCAL",)


def test_providers_are_named_as_documented() -> None:
    assert InferenceSettings(worker_providers="fal_standard, LOCAL").worker_providers == ("FAL_STANDARD", "LOCAL")
    for wrong in ("NOPE", "FASHN_STANDARD", ""):
        with pytest.raises(ValueError, match="known are FAL_STANDARD, LOCAL, VERTEX"):
            providers.parse_providers(wrong.split(",") if wrong else ())
