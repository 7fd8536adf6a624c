"""Meshes for the stories: one a module where a story leaves it whole, one of its own where it breaks it."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import NOOP_ENVIRONMENT, RunningMesh


@pytest.fixture(scope="module")
def start_mesh(servers_folder: Path) -> Iterator[Callable[..., RunningMesh]]:
    """Starts meshes; all are stopped after the module."""
    meshes: list[RunningMesh] = []

    def start(**environment: str) -> RunningMesh:
        folder = Path(tempfile.mkdtemp(dir=servers_folder, prefix="mesh-"))
        folder.chmod(0o711)
        mesh = RunningMesh(folder, {**NOOP_ENVIRONMENT, **environment})
        meshes.append(mesh)
        mesh.up()
        return mesh

    yield start
    for mesh in meshes:
        mesh.down()


@pytest.fixture(scope="module")
def mesh(start_mesh: Callable[..., RunningMesh]) -> RunningMesh:
    """The module's mesh: its worker takes NOOP tasks alone."""
    return start_mesh()
