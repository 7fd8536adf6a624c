"""Every service is put together and started the same way."""

import ast
import importlib
import inspect

import pytest

from meshkit import topology
from meshkit.config import MeshSettings
from tests.unit.repository.sources import ROOT


@pytest.mark.parametrize("spec", [*topology.SERVICES, *topology.OPTIONAL], ids=lambda spec: spec.role)
def test_composition_starts_a_service_from_settings_onto_a_stack(spec: topology.ServiceSpec) -> None:
    start = importlib.import_module(f"{spec.module}.composition").start
    assert inspect.iscoroutinefunction(start)
    signature = inspect.signature(start, eval_str=True)
    assert list(signature.parameters) == ["settings", "stack"]
    assert issubclass(signature.parameters["settings"].annotation, MeshSettings)
    assert signature.return_annotation.__name__.endswith("Runtime")
    assert "address" in signature.return_annotation.__dataclass_fields__


@pytest.mark.parametrize("spec", [*topology.SERVICES, *topology.OPTIONAL], ids=lambda spec: spec.role)
def test_main_only_calls_it(spec: topology.ServiceSpec) -> None:
    path = ROOT / spec.module.replace(".", "/") / "__main__.py"
    docstring, *statements = ast.parse(path.read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)
    last = statements.pop()
    assert all(isinstance(one, ast.Import | ast.ImportFrom) for one in statements)
    assert isinstance(last, ast.If)
    assert [ast.unparse(one).partition("(")[0] for one in last.body] == ["lifecycle.run_service"]


def test_services_open_their_channels_and_ports_with_the_certificate_of_their_settings() -> None:
    """A channel made of its parts, or a port of gRPC's own, would speak plain text in a mesh with certificates."""
    bare = ("MeshChannel", "insecure_channel", "secure_channel", "add_insecure_port", "add_secure_port")
    found = {
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in ("services", "meshkit/worker")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and (
            ast.unparse(node.func) in bare
            or ast.unparse(node.func).endswith((".add_insecure_port", ".add_secure_port"))
        )
    }
    assert found == set(), "use MeshChannel.from_settings, and build_server or listen_on"
