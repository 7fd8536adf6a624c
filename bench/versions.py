"""Tasks a second end to end of another checkout's mesh and of this one, by turns on one PostgreSQL.

Both meshes run at once and are loaded in short turns, so that what else the machine does meets both alike.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from bench import stacks
from bench.throughput import ThroughputRound, measure


def main() -> int:
    """Load both meshes in turn and print what each round gave, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tree", type=Path, help="the other checkout, as `git worktree add TREE REVISION` makes it")
    parser.add_argument("--count", type=int, default=1500, help="tasks a round")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    theirs: list[ThroughputRound] = []
    ours: list[ThroughputRound] = []
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as scratch:
        folder = Path(scratch)
        for name in ("other", "this"):
            (folder / name).mkdir()
        with (
            stacks.postgres(folder) as server,
            stacks.mesh(
                folder / "other", stacks.create_database(server, "other"), tree=given.tree.resolve(strict=True)
            ) as other,
            stacks.mesh(folder / "this", stacks.create_database(server, "this")) as this,
        ):
            for stack in (other, this):
                measure(stack, count=400, clients=given.clients)
            turns = [(other, theirs), (this, ours)]
            for number in range(given.rounds):
                for stack, done in turns if number % 2 else reversed(turns):
                    done.append(measure(stack, count=given.count, clients=given.clients))
                print(f"round {number + 1}: {theirs[-1].tasks:.0f} and {ours[-1].tasks:.0f} tasks/s", flush=True)
    _print_table(theirs, ours)
    return 0


def _print_table(theirs: list[ThroughputRound], ours: list[ThroughputRound]) -> None:
    print("| | other | this | ratio, median of rounds | ratio of means |\n|---|---|---|---|---|")
    for title, before, now in (
        ("tasks/s end to end", [one.tasks for one in theirs], [one.tasks for one in ours]),
        ("processor a task, us", [_processor(one) for one in theirs], [_processor(one) for one in ours]),
    ):
        ratio = statistics.median(mine / other for other, mine in zip(before, now, strict=True))
        means = statistics.mean(now) / statistics.mean(before)
        print(
            f"| {title} | {statistics.median(before):.0f} | {statistics.median(now):.0f} | {ratio:.3f} | {means:.3f} |"
        )
    for name, done in (("other", theirs), ("this", ours)):
        parts = {part: statistics.median(one.processor_us[part] for one in done) for part in done[0].processor_us}
        print(f"{name}: {', '.join(f'{part} {value:.0f}' for part, value in parts.items() if value)}")


def _processor(one: ThroughputRound) -> float:
    return sum(one.processor_us.values())


if __name__ == "__main__":
    sys.exit(main())
