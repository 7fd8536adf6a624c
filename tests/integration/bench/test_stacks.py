"""What a bench starts ends with it."""

import subprocess
import sys
from pathlib import Path

import psutil

from bench.stacks import ROOT
from tests.e2e.harness import until

_BENCH = """
import sys, time
from pathlib import Path
from bench import stacks
stacks.ATELIER = Path(sys.argv[1])
print(stacks._up(Path(sys.argv[2]), Path(sys.argv[2]) / "mesh", 1, {}).pid, flush=True)
time.sleep(600)
"""


def test_the_mesh_of_a_killed_bench_is_told_to_stop(tmp_path: Path) -> None:
    atelier = tmp_path / "atelier"
    atelier.write_text(
        f"#!/bin/sh\ntrap 'echo \"$@\" > {tmp_path}/stopped; exit' TERM\n"
        f"touch {tmp_path}/listens\nwhile :; do sleep 0.1; done\n"
    )
    atelier.chmod(0o755)
    bench = subprocess.Popen(
        [sys.executable, "-c", _BENCH, str(atelier), str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with bench:
        assert bench.stdout is not None
        mesh = psutil.Process(int(bench.stdout.readline()))
        until((tmp_path / "listens").exists, "the mesh heeds the signal")
        bench.kill()
    mesh.wait(60)
    assert (tmp_path / "stopped").read_text().split()[:1] == ["up"]
