"""How long the mesh takes to stand, and what each of its processes holds while nothing is asked of it."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from bench import stacks

MEBIBYTE = 2**20


def private_bytes(pid: int) -> int:
    """Proportional set size of a process and its children: shared pages count once over all that share them."""
    process = psutil.Process(pid)
    return sum(int(one.memory_full_info().pss) for one in (process, *process.children(recursive=True)))


def main() -> int:
    """Start the mesh several times, let it rest, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rest", type=float, default=5.0, help="seconds of rest before memory is read")
    given = parser.parse_args()
    seconds: list[float] = []
    held: dict[str, list[float]] = {}
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory(prefix="atelier-bench-") as scratch:
            folder = Path(scratch)
            folder.chmod(0o711)
            begun = time.perf_counter()
            with stacks.mesh(folder, None) as mesh:
                seconds.append(time.perf_counter() - begun)
                time.sleep(given.rest)
                status = subprocess.run(
                    [stacks.ATELIER, "status", "--data", mesh.folder, "--json"],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                for process in json.loads(status.stdout)["processes"]:
                    held.setdefault(process["role"], []).append(private_bytes(process["pid"]) / MEBIBYTE)
    print(f"from nothing to ready, and a token: {statistics.median(seconds):.1f} s")
    print("| process | MiB (PSS, with its children) |")
    print("|---|---|")
    for role, sizes in sorted(held.items()):
        print(f"| {role} | {statistics.median(sizes):.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
