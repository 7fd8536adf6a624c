"""What a new task type, provider or service costs: counted on those of the product, and shown by throw-away ones."""

import importlib.machinery
import re
import sys
import types
from typing import cast

import pytest

from meshkit import topology
from meshkit.catalog import OWN_PROVIDERS, PROVIDERS, TASK_TYPES
from services.inference import providers, tasktypes
from services.inference.providers.kit import ProviderKit
from services.tasks.catalog import PROVIDERS_WITH_HANDLERS, TASK_TYPES_WITH_HANDLERS
from tests.unit.repository.sources import PRODUCT, modules, place

_PRODUCT = ("meshkit", "modelkit", "services")
# The documented routes below /api/v1/tasks/generation are confined to this type.
_NAMED_BY_ROUTES = {"GENERATION": {"services/tasks/api/servicer.py"}}


def _naming(*words: str) -> set[str]:
    """Return the modules that have one of these words as a whole text."""
    pattern = re.compile("|".join(rf'"{re.escape(word)}"' for word in words))
    return {place(path) for path in modules(*_PRODUCT) if pattern.search(path.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("name", TASK_TYPES_WITH_HANDLERS)
def test_a_task_type_is_a_module_and_one_registration(name: str) -> None:
    module = f"services/inference/tasktypes/{TASK_TYPES[name].detail}.py"
    assert _naming(name, TASK_TYPES[name].detail) - {module} - _NAMED_BY_ROUTES.get(name, set()) == {
        "services/tasks/catalog.py"
    }
    assert module in {place(path) for path in modules("services")}


def test_types_that_are_served_by_default_have_modules_and_the_reverse() -> None:
    public = {name for name in tasktypes.handled_types() if not TASK_TYPES[name].internal}
    assert public == set(TASK_TYPES_WITH_HANDLERS)


def test_types_without_a_module_are_named_nowhere() -> None:
    for name in set(TASK_TYPES) - set(tasktypes.handled_types()):
        assert _naming(name) == set(), name


def test_a_throwaway_task_type_is_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "EXPERIMENTAL_FAL" not in tasktypes.handled_types()
    name, handler = f"{tasktypes.__name__}.experimental_fal", object()
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.handler = lambda: handler  # type: ignore[attr-defined] # a module made here
    monkeypatch.setitem(sys.modules, name, module)
    [added] = tasktypes.parse_types(["EXPERIMENTAL_FAL"])
    assert tasktypes.load_handlers([added]) == {added: handler}
    assert added in tasktypes.parse_types([])


@pytest.mark.parametrize("module", [spec.module for spec in topology.SERVICES])
def test_a_service_is_named_by_one_entry_outside_of_its_folder(module: str) -> None:
    named = re.compile(rf'"{re.escape(module)}["./]|(?:from|import) {re.escape(module)}\b')
    folder = "/".join(module.split(".")[:2])  # a worker in a room of its service is known there
    outside = {
        place(path)
        for path in modules(*PRODUCT)
        if not place(path).startswith(f"{folder}/") and named.search(path.read_text(encoding="utf-8"))
    }
    assert outside == {"meshkit/topology.py"}


def test_own_pipelines_are_executed_by_whoever_executes_their_types() -> None:
    kinds = [TASK_TYPES[name].number for name in TASK_TYPES_WITH_HANDLERS]
    pairs = {(pair.task_type, pair.provider) for pair in tasktypes.load_pairs(kinds)}
    assert pairs == {
        (TASK_TYPES[task_type].number, PROVIDERS[name].number)
        for name in OWN_PROVIDERS
        for task_type in PROVIDERS[name].tasks
        if task_type in TASK_TYPES_WITH_HANDLERS
    }
    assert len(tasktypes.load_pairs([TASK_TYPES["REFINE"].number])) == 2


@pytest.mark.parametrize("name", sorted(set(PROVIDERS) - set(PROVIDERS_WITH_HANDLERS)))
def test_a_provider_is_named_by_its_registration_alone(name: str) -> None:
    assert _naming(name) <= {"services/inference/providers/__init__.py"}


def test_a_throwaway_provider_is_a_module_and_one_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    handler, spec = object(), PROVIDERS["FASHN_STANDARD"]
    kinds = [TASK_TYPES[name].number for name in spec.tasks]
    module = types.ModuleType("throwaway_fashn")
    module.handlers = lambda kit: dict.fromkeys(kinds, handler)  # type: ignore[attr-defined] # a module made here
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(providers._MODULES, spec.name, module.__name__)
    [work] = providers.load_calls([spec.name], slots=2, kit=cast("ProviderKit", None))
    assert work.queue == spec.queue
    assert [pair.task_type for pair in work.handlers] == kinds
