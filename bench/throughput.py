"""Creates a second and tasks a second end to end, and how long an idle mesh takes to begin a task."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg

from bench import stacks
from bench.stacks import Stack


@dataclass(frozen=True, slots=True)
class ThroughputRound:
    """Figures of one round on one stack: per second, milliseconds, and microseconds of processor a task by process."""

    creates: float
    tasks: float
    create_p50_ms: float
    processor_us: Mapping[str, float]


def measure(stack: Stack, *, count: int, clients: int) -> ThroughputRound:
    """Post `count` creates and wait until every task has completed.

    Raises:
        TimeoutError: the tasks did not complete within five minutes.
    """
    with psycopg.connect(stack.dsn, autocommit=True) as connection:
        before = stack.completed(connection)
        used = stack.processor_seconds()
        begun = time.perf_counter()
        figures = stacks.load(stack, count=count, clients=clients)
        while stack.completed(connection) < before + count:
            if time.perf_counter() - begun > 300:
                message = f"{stack.name} completed {stack.completed(connection) - before} of {count} tasks"
                raise TimeoutError(message)
            time.sleep(0.02)
        # The time of the row that ended last, so that the poll's own grain does not count.
        row = connection.execute(
            f"SELECT extract(epoch FROM max(completed_at) - min(created_at)) FROM"  # noqa: S608 -- constants
            f" (SELECT * FROM {stack.table} ORDER BY created_at DESC LIMIT {count}) AS latest"
        ).fetchone()
    assert row is not None
    processor = {
        name: (seconds - used.get(name, 0.0)) / count * 1e6 for name, seconds in stack.processor_seconds().items()
    }
    return ThroughputRound(figures["per_second"], count / float(row[0]), figures["p50_ms"], processor)


def dispatch(stack: Stack, *, count: int) -> tuple[float, float]:
    """Create tasks one by one on an idle stack.

    Returns:
        Median milliseconds from the row's creation to its start, and to its completion, by the database's clock.
    """
    with psycopg.connect(stack.dsn, autocommit=True) as connection:
        for _ in range(count):
            before = stack.completed(connection)
            stacks.load(stack, count=2, clients=1)
            while stack.completed(connection) < before + 2:
                time.sleep(0.005)
            time.sleep(0.05)
        rows = connection.execute(
            f"SELECT extract(epoch FROM started_at - created_at), extract(epoch FROM completed_at - created_at)"  # noqa: S608 -- constants
            f" FROM {stack.table} ORDER BY created_at DESC LIMIT {count * 2}"
        ).fetchall()
    return (
        statistics.median(float(row[0]) for row in rows) * 1e3,
        statistics.median(float(row[1]) for row in rows) * 1e3,
    )


def _print_table(rounds: dict[str, list[ThroughputRound]], idle: dict[str, tuple[float, float]]) -> None:
    ours, theirs = rounds["atelier"], rounds["celery"]
    print("| figure | atelier | FastAPI + Celery | ratio |")
    print("|---|---|---|---|")
    for title, pick in (("creates/s", "creates"), ("tasks/s end to end", "tasks"), ("create p50, ms", "create_p50_ms")):
        mine = statistics.median(getattr(item, pick) for item in ours)
        other = statistics.median(getattr(item, pick) for item in theirs)
        pairs = statistics.median(getattr(a, pick) / getattr(b, pick) for a, b in zip(ours, theirs, strict=True))
        print(f"| {title} | {mine:.1f} | {other:.1f} | {pairs:.2f} |")
    for index, title in enumerate(("idle, created to started p50, ms", "idle, created to completed p50, ms")):
        mine, other = idle["atelier"][index], idle["celery"][index]
        print(f"| {title} | {mine:.1f} | {other:.1f} | {mine / other:.2f} |")
    for name, done in rounds.items():
        parts = {part: statistics.median(item.processor_us[part] for item in done) for part in done[0].processor_us}
        listed = ", ".join(f"{part} {value:.0f}" for part, value in parts.items())
        print(f"{name}, microseconds of processor a task: {listed}; in all {sum(parts.values()):.0f}")


def main() -> int:
    """Run both stacks in turn on one PostgreSQL and print their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="tasks a round")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--idle", type=int, default=20, help="tasks created one by one")
    parser.add_argument(
        "--redis-fsync",
        default="always",
        choices=["always", "everysec"],
        help="when the peer's queue waits for the disk",
    )
    given = parser.parse_args()
    rounds: dict[str, list[ThroughputRound]] = {"atelier": [], "celery": []}
    idle: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as scratch:
        folder = Path(scratch)
        with (
            stacks.postgres(folder) as server,
            stacks.mesh(folder, stacks.create_database(server, "mesh")) as ours,
            stacks.peer(folder, stacks.create_database(server, "peer"), given.redis_fsync) as theirs,
        ):
            for stack in (ours, theirs):
                measure(stack, count=200, clients=given.clients)
                idle[stack.name] = dispatch(stack, count=given.idle)
            for number in range(given.rounds):
                for stack in (ours, theirs):
                    done = measure(stack, count=given.count, clients=given.clients)
                    rounds[stack.name].append(done)
                    print(f"round {number + 1} {stack.name}: {done.creates:.0f} creates/s, {done.tasks:.0f} tasks/s")
            _print_table(rounds, idle)
    return 0


if __name__ == "__main__":
    sys.exit(main())
