"""Every service is put together and started the same way."""

import ast
import importlib
import inspect

import pytest

from meshkit import topology
from meshkit.config import MeshSettings
from tests.unit.repository.sources import ROOT


@pytest.mark.parametrize("spec", topology.SERVICES, ids=lambda spec: spec.role)
def test_composition_starts_a_service_from_settings_onto_a_stack(spec: topology.ServiceSpec) -> None:
    start = importlib.import_module(f"{spec.module}.composition").start
    assert inspect.iscoroutinefunction(start)
    signature = inspect.signature(start, eval_str=True)
    assert list(signature.parameters) == ["settings", "stack"]
    assert issubclass(signature.parameters["settings"].annotation, MeshSettings)
    assert signature.return_annotation.__name__.endswith("Runtime")
    assert "address" in signature.return_annotation.__dataclass_fields__


@pytest.mark.parametrize("spec", topology.SERVICES, ids=lambda spec: spec.role)
def test_main_only_calls_it(spec: topology.ServiceSpec) -> None:
    path = ROOT / spec.module.replace(".", "/") / "__main__.py"
    docstring, *statements = ast.parse(path.read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)
    last = statements.pop()
    assert all(isinstance(one, ast.Import | ast.ImportFrom) for one in statements)
    assert isinstance(last, ast.If)
    assert [ast.unparse(one).partition("(")[0] for one in last.body] == ["lifecycle.run_service"]
