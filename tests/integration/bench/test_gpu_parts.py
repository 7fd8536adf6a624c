"""What becomes of parts that fail, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bench.gpu import check
from bench.gpu.parts import Part
from bench.gpu.setting import SCALES, RunningMesh, Setting
from bench.stacks import ROOT, Stack

MESH = RunningMesh(Stack("mesh", "", "", {}, "", "", Path(), {}), "s3:1", "", "")


class FakeMesh:
    def __init__(self, *, starts: bool = True) -> None:
        self.log: list[str] = []
        self._starts = starts
        self._running = False

    def running(self) -> RunningMesh:
        if not self._starts:
            raise RuntimeError("no port is free")
        if not self._running:
            self.log.append("start")
        self._running = True
        return MESH

    def close(self) -> None:
        if self._running:
            self.log.append("stop")
        self._running = False


def part(function: str, *, seconds: float = 120.0, uses_mesh: bool = False, needs: tuple[str, ...] = ()) -> Part:
    return Part(function, f"tests.integration.bench.sample_parts:{function}", seconds, uses_mesh, needs)


def run(
    *parts: Part, mesh: FakeMesh | None = None, seconds: float = 600.0
) -> tuple[dict[str, str], dict[str, list[float]]]:
    """Runs parts; gives the errors and the figures of each."""
    outcomes = check.run(parts, Setting("cpu", SCALES["tiny"], Path()), mesh or FakeMesh(), seconds)
    figures = {each.part: [figure.value for figure in each.figures] for each in outcomes}
    return {each.part: each.error for each in outcomes}, figures


def test_a_part_runs_in_a_process_of_its_own() -> None:
    errors, figures = run(part("works"))
    assert errors == {"works": ""}
    assert figures["works"][0] != os.getpid()
    assert figures["works"][1:] == [2.0]


def test_a_part_that_fails_keeps_its_figures_and_leaves_the_others_alone() -> None:
    errors, figures = run(part("finds_a_fault"), part("raises"), part("dies"), part("works"))
    assert errors == {
        "finds_a_fault": "The picture is green.",
        "raises": "ZeroDivisionError: by nothing",
        "dies": "Its process ended with status 7.",
        "works": "",
    }
    assert [figures[name] for name in ("finds_a_fault", "raises", "dies")] == [[1.0]] * 3


def test_a_part_ends_with_whoever_runs_it() -> None:
    program = (
        "from pathlib import Path\n"
        "from bench.gpu.running import run\n"
        "from bench.gpu.setting import SCALES, Setting\n"
        "from tests.integration.bench.test_gpu_parts import part\n"
        "run(part('is_left_alone', seconds=3600), Setting('cpu', SCALES['tiny'], Path()),"
        " 3600, lambda figure: print(int(figure.value), flush=True))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        process = psutil.Process(int(running.stdout.readline()))
        running.kill()
    _, alive = psutil.wait_procs([process], timeout=60)
    assert not alive


def test_a_part_that_hangs_ends_at_its_bound() -> None:
    errors, figures = run(part("hangs", seconds=15.0), part("works"))
    assert errors == {"hangs": "It had not ended after 15 s.", "works": ""}
    assert figures["hangs"] == [1.0]


def test_no_part_begins_after_the_time_for_all() -> None:
    errors, _ = run(part("works"), seconds=0.0)
    assert errors == {"works": "The time for all parts was used up before it."}


def test_a_part_is_left_out_when_one_that_it_needs_has_failed() -> None:
    errors, _ = run(part("raises"), part("works", needs=("raises",)))
    assert errors["works"] == "It needs the part raises, which failed."


def test_parts_share_a_mesh_until_one_of_them_fails() -> None:
    mesh = FakeMesh()
    on_mesh = part("uses_mesh", uses_mesh=True)
    errors, figures = run(on_mesh, part("works"), part("fails_on_mesh", uses_mesh=True), on_mesh, mesh=mesh)
    assert errors["fails_on_mesh"] == "The worker is gone."
    assert figures["uses_mesh"] == [len("s3:1")]
    assert mesh.log == ["start", "stop", "start", "stop"]


def test_a_mesh_that_does_not_start_fails_only_the_parts_that_need_it(capfd: pytest.CaptureFixture[str]) -> None:
    errors, _ = run(part("uses_mesh", uses_mesh=True), part("works"), mesh=FakeMesh(starts=False))
    assert errors == {"uses_mesh": "The mesh did not start: no port is free", "works": ""}
    assert "FAILED: The mesh did not start: no port is free" in capfd.readouterr().out
