"""How long the mesh and each of its services take to start, and the memory of each process at rest."""

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

from bench import stacks, starts

MEBIBYTE = 2**20


def private_bytes(pid: int) -> int:
    """Proportional set size of a process and its children: shared pages count once over all that share them."""
    process = psutil.Process(pid)
    return sum(int(one.memory_full_info().pss) for one in (process, *process.children(recursive=True)))


def main() -> int:
    """Start the services and the mesh several times, let it rest, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="starts of the whole mesh; 0 for none")
    parser.add_argument("--starts", type=int, default=5, help="starts of each service alone; 0 for none")
    parser.add_argument("--rest", type=float, default=5.0, help="seconds of rest before memory is read")
    given = parser.parse_args()
    if given.starts:
        show_starts(given.starts)
    if given.rounds:
        show_mesh(given.rounds, given.rest)
    return 0


def show_starts(rounds: int) -> None:
    """Print how long each service takes to serve, beside servers that are up and migrated."""
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o711)
        measured = starts.measure(folder, rounds)
    print("| service, alone, from its process's start until it serves | median, s | slowest, s |")
    print("|---|---|---|")
    for name, each in measured.items():
        print(f"| {name} | {statistics.median(each):.2f} | {max(each):.2f} |")
    print()


def show_mesh(rounds: int, rest: float) -> None:
    """Print how long a mesh takes to start, and the memory of its processes after a rest."""
    seconds: list[float] = []
    held: dict[str, list[float]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="atelier-bench-") as scratch:
            folder = Path(scratch)
            folder.chmod(0o711)
            begun = time.perf_counter()
            with stacks.mesh(folder, None) as mesh:
                seconds.append(time.perf_counter() - begun)
                time.sleep(rest)
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


if __name__ == "__main__":
    sys.exit(main())
