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


def test_every_part_runs_at_the_tiny_scale(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = gpu_check("--device", "cpu", "--scale", "tiny", "--json", file)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = {part["name"]: part for part in json.loads(file.read_text())["parts"]}
    assert list(parts) == [part.name for part in PARTS]
    figures = {name: {figure["name"]: figure["value"] for figure in part["figures"]} for name, part in parts.items()}
    assert all(figures.values()), "every part measures something"
    assert figures["shipped"]["picture against the CPU's in float32, PSNR"] >= 40
    assert all(figures["shipped"][f"batches of {size}"] > 0 for size in SCALES["tiny"].batches)
    # Bare and worker are measured alike, so that they can be compared.
    compared = {"a step", "peak memory", "LoRA swapped for a loaded one", "a step with a LoRA"}
    assert compared <= set(figures["bare"]) & set(figures["worker"])
    assert {"a step, torch.compile off", "a step, torch.compile on"} <= set(figures["compile"])
    trained = {f"a step of {side}x{side} {how}" for side in (32, 64) for how in ("eager", "compiled")}
    assert trained <= set(figures["training"])
    assert "blocks that did not compile" not in figures["training"]
    assert "| worker | a step |" in done.stdout
    assert "its figures mean nothing" in done.stdout


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
