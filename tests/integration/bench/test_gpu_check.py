"""`python -m bench.gpu` as it is called, on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu.parts import PARTS
from bench.gpu.setting import SCALES
from bench.stacks import ROOT


def gpu_check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def measured(*arguments: str, into: Path) -> tuple[dict[str, dict[str, float]], str]:
    """Run the check at the tiny scale; return the figures of each part, and what was printed."""
    done = gpu_check("--device", "cpu", "--scale", "tiny", "--json", into, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads(into.read_text())["parts"]
    return {part["name"]: {one["name"]: one["value"] for one in part["figures"]} for part in parts}, done.stdout


def test_one_part_alone_is_measured_and_told(tmp_path: Path) -> None:
    figures, printed = measured("--only=build", "--only=bare", into=tmp_path / "figures.json")
    assert tuple(figures) == ("build", "bare")
    assert "| bare | a step |" in printed
    assert "its figures mean nothing" in printed


@pytest.mark.long
def test_bare_and_worker_are_measured_alike(tmp_path: Path) -> None:
    parts = ("build", "bare", "worker")
    figures, printed = measured(*(f"--only={part}" for part in parts), into=tmp_path / "figures.json")
    assert tuple(figures) == parts
    compared = {"a step", "peak memory", "LoRA swapped for a loaded one", "a step with a LoRA"}
    assert compared <= set(figures["bare"]) & set(figures["worker"])
    assert "| worker | a step |" in printed


@pytest.mark.long
def test_every_part_runs_at_the_tiny_scale(tmp_path: Path) -> None:
    figures, _ = measured(into=tmp_path / "figures.json")
    assert list(figures) == [part.name for part in PARTS]
    assert all(figures.values()), "every part measures something"
    assert figures["shipped"]["picture against the CPU's in float32, PSNR"] >= 40
    assert all(figures["shipped"][f"batches of {size}"] > 0 for size in SCALES["tiny"].batches)
    assert {"a step, torch.compile off", "a step, torch.compile on"} <= set(figures["compile"])
    trained = {f"a step of {side}x{side} {how}" for side in (32, 64) for how in ("eager", "compiled")}
    assert trained <= set(figures["training"])
    assert "blocks that did not compile" not in figures["training"]


def test_without_cuda_it_says_so_and_ends_with_2() -> None:
    done = gpu_check()
    assert done.returncode == 2
    assert "needs CUDA" in done.stderr
    assert "--device cpu --scale tiny" in done.stderr


@pytest.mark.parametrize("arguments", [("--device", "cpu"), ("--only", "nothing"), ("--device", "tpu")])
def test_what_cannot_run_ends_with_2(arguments: tuple[str, ...]) -> None:
    done = gpu_check(*arguments)
    assert done.returncode == 2
    assert done.stderr
