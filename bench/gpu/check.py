"""Run parts one after the other: each within its bound, and each whatever became of the ones before it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from bench.gpu import running
from bench.gpu.parts import Part
from bench.gpu.running import Outcome
from bench.gpu.setting import Figure, RunningMesh, Setting


class MeshSource(Protocol):
    """Starts a mesh when it is asked for one."""

    def running(self) -> RunningMesh:
        """Return the mesh, started if need be."""
        ...

    def close(self) -> None:
        """Stop it, if it runs."""
        ...


def run(parts: Sequence[Part], setting: Setting, mesh: MeshSource, seconds: float) -> list[Outcome]:
    """Run parts, and print what they measure as it comes.

    Args:
        parts: The parts, each after those that it needs.
        setting: What they are given, less the mesh.
        mesh: Where they get a mesh; it is stopped at the end.
        seconds: How long all may take together.
    """
    until = time.monotonic() + seconds
    outcomes: dict[str, Outcome] = {}
    try:
        for part in parts:
            print(f"-- {part.name}", flush=True)
            outcome = outcomes[part.name] = _run_one(part, setting, mesh, until, outcomes)
            if outcome.error:
                print(f"   FAILED: {outcome.error}", flush=True)
    finally:
        _stop(mesh)
    return list(outcomes.values())


def _run_one(part: Part, setting: Setting, mesh: MeshSource, until: float, outcomes: dict[str, Outcome]) -> Outcome:
    for name in part.needs:
        if outcomes[name].error:
            return Outcome(part.name, error=f"It needs the part {name}, which failed.")
    if part.uses_mesh:
        try:
            setting = replace(setting, mesh=mesh.running())
        except Exception as error:  # whatever keeps the mesh from starting, other parts run without it
            _stop(mesh)
            return Outcome(part.name, error=f"The mesh did not start: {error}")
    left = min(part.seconds, until - time.monotonic())
    if left <= 0:
        return Outcome(part.name, error="The time for all parts was used up before it.")
    outcome = running.run(part, setting, left, _print)
    if part.uses_mesh and outcome.error:
        _stop(mesh)  # what the part left in the queue would disturb the next one
    return outcome


def _stop(mesh: MeshSource) -> None:
    try:
        mesh.close()
    except Exception as error:  # what was measured is told all the same
        print(f"   The mesh did not stop: {error}", flush=True)


def _print(figure: Figure) -> None:
    print(f"   {figure.name}: {figure.value:.4g} {figure.unit}", flush=True)
