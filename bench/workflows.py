"""Workflows side by side: the mesh, Celery canvas and DBOS queues, on one PostgreSQL with fsync on.

Chains and fans of no-op steps: steps a second with several workflows at once, and milliseconds from one step's end to
the next one's end in a chain that runs alone. Peers' workers are stopped (SIGSTOP) while another system has its turn:
they poll their database, which would take processor time from it. `--alone` measures an idle mesh without
any peer, `--scale` the mesh with up to 10,000 workflows live.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from bench import stacks
from bench.flows import Flows, Shape, celery, dbos, definition, mesh_flows, post_all

LIMIT_SECONDS = 600.0
# A queue that no worker of the benchmark serves.
PARKED = {"queue_name": "training"}


@dataclass(frozen=True, slots=True)
class RoundProgress:
    """Return how many have ended, and when the last one did, in seconds of the epoch."""

    count: int
    last: float


def _progress(flows: Flows, connection: psycopg.Connection[tuple[int, float | None]]) -> RoundProgress:
    try:
        row = connection.execute(f"SELECT count(*), max(moment)::float8 FROM ({flows.ends}) AS ends").fetchone()  # noqa: S608 -- constants
    except psycopg.errors.UndefinedTable:  # Celery creates its table with the first result
        return RoundProgress(0, 0.0)
    assert row is not None
    return RoundProgress(row[0], row[1] or 0.0)


def run(flows: Flows, shape: Shape, count: int) -> float:
    """Start a number of workflows and wait until all have ended.

    Returns:
        Seconds from the first submission to the recorded end of the last one.

    Raises:
        TimeoutError: they did not end in ten minutes.
    """
    with psycopg.connect(flows.dsn, autocommit=True) as connection:
        wanted = _progress(flows, connection).count + count * flows.rows(shape)
        begun = flows.submit(shape, count)
        while (now := _progress(flows, connection)).count < wanted:
            if time.time() - begun > LIMIT_SECONDS:
                message = f"{flows.name} lacks {wanted - now.count} ends of {count} workflows"
                raise TimeoutError(message)
            time.sleep(0.02)
    return now.last - begun


def idle_gap(flows: Flows, shape: Shape) -> float:
    """Milliseconds from a step's end to the next one's, p50 over a chain that runs alone."""
    run(flows, shape, 1)
    query = f"SELECT moment::float8 FROM ({flows.step_ends}) AS ends ORDER BY moment DESC LIMIT %s"  # noqa: S608 -- constants
    with psycopg.connect(flows.dsn, autocommit=True) as connection:
        moments = [float(row[0]) for row in connection.execute(query, (shape.steps,)).fetchall()]
    return statistics.median(after - before for after, before in itertools.pairwise(moments)) * 1e3


@contextmanager
def turn(flows: Flows, systems: Sequence[Flows]) -> Iterator[None]:
    """Stop the workers of all other systems meanwhile."""
    others = [process.pid for other in systems if other is not flows for process in other.workers]
    for group in others:
        os.killpg(group, signal.SIGSTOP)
    try:
        yield
    finally:
        for group in others:
            os.killpg(group, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class ComparedFigure:
    """One row of the table.

    Attributes:
        title: What it says.
        values: Of each system, one a round.
    """

    title: str
    values: dict[str, list[float]]


def _print_table(names: Sequence[str], figures: Sequence[ComparedFigure]) -> None:
    ours, others = names[0], names[1:]
    print(f"| figure | {' | '.join(names)} | {' | '.join(f'{ours} to {other}' for other in others)} |")
    print("|---" * (len(names) + len(others) + 1) + "|")
    for figure in figures:
        medians = [f"{statistics.median(figure.values[name]):.1f}" for name in names]
        ratios = [
            statistics.median(a / b for a, b in zip(figure.values[ours], figure.values[other], strict=True))
            for other in others
        ]
        print(f"| {figure.title} | {' | '.join(medians)} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")


def compare(systems: Sequence[Flows], loads: Sequence[tuple[Shape, int]], *, rounds: int, idle: int) -> None:
    """Run all systems in turn, round by round, and print medians."""
    figures: list[ComparedFigure] = []
    chain = loads[0][0]
    for flows in systems:
        for shape, _ in loads:
            run(flows, shape, 2)  # warms connections and plans
    for shape, count in loads:
        size = f"{shape.size} steps" if shape.kind == "chain" else f"1 to {shape.size} to 1"
        figure = ComparedFigure(
            f"steps/s, {count} {shape.kind}s at once, {size}", {flows.name: [] for flows in systems}
        )
        figures.append(figure)
        for number in range(rounds):
            for flows in systems:
                with turn(flows, systems):
                    figure.values[flows.name].append(count * shape.steps / run(flows, shape, count))
                print(f"round {number + 1} {flows.name} {shape.kind}: {figure.values[flows.name][-1]:.1f} steps/s")
    figure = ComparedFigure("idle, step to step p50, ms", {flows.name: [] for flows in systems})
    figures.append(figure)
    for _ in range(idle):
        for flows in systems:
            with turn(flows, systems):
                time.sleep(0.2)
                figure.values[flows.name].append(idle_gap(flows, chain))
    _print_table([flows.name for flows in systems], figures)


def scale(mesh: stacks.Stack, counts: Sequence[int], *, probe: tuple[Shape, int], rounds: int) -> None:
    """Measure a step's cost while many other workflows are live, each with the task of its first step queued."""
    flows = mesh_flows(mesh)
    url = mesh.url.replace("/tasks/", "/workflows/")
    shape, at_once = probe
    run(flows, shape, 2)
    print("| live workflows | ms a step | creates/s |")
    print("|---|---|---|")
    live = 0
    for count in sorted(counts):
        added = max(1, count - live)
        begun = asyncio.run(post_all(url, mesh.headers, definition(shape, PARKED), added))
        creates = added / (time.time() - begun)
        live += added
        _wait_parked(flows, live)
        took = statistics.median(run(flows, shape, at_once) for _ in range(rounds))
        print(f"| {live} | {took * 1e3 / (at_once * shape.steps):.2f} | {creates:.0f} |", flush=True)


def _wait_parked(flows: Flows, count: int) -> None:
    """Wait until the tasks of all first steps are created.

    Raises:
        TimeoutError: they were not in ten minutes.
    """
    until = time.monotonic() + LIMIT_SECONDS
    with psycopg.connect(flows.dsn, autocommit=True) as connection:
        while True:
            row = connection.execute("SELECT count(*) FROM workflows.steps WHERE state = 'RUNNING'").fetchone()
            assert row is not None
            if row[0] >= count:
                return
            if time.monotonic() > until:
                message = f"{row[0]} of {count} first steps are queued"
                raise TimeoutError(message)
            time.sleep(0.2)


def main() -> int:
    """Run the requested measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chains", type=int, default=20, help="chains at once")
    parser.add_argument("--fans", type=int, default=10, help="fans at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--idle", type=int, default=5, help="chains that run alone")
    parser.add_argument(
        "--poll",
        type=float,
        default=0.05,
        help="seconds between a peer's polls of its database; their own default is 1",
    )
    parser.add_argument("--alone", action="store_true", help="the idle mesh, without peers")
    parser.add_argument("--scale", action="store_true", help="the mesh alone, with more and more live workflows")
    parser.add_argument("--live", type=int, nargs="+", default=[10, 100, 1000, 10000], help="how many for --scale")
    given = parser.parse_args()
    # Stop what was started, however this ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    loads = [(Shape("chain", 10), given.chains), (Shape("fan", 20), given.fans)]
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as scratch:
        folder = Path(scratch)
        with (
            stacks.postgres(folder) as server,
            stacks.mesh(folder, stacks.create_database(server, "mesh")) as mesh,
        ):
            if given.alone:
                flows = mesh_flows(mesh)
                run(flows, loads[0][0], 3)
                gaps = [idle_gap(flows, loads[0][0]) for _ in range(given.idle)]
                print(
                    f"step to step p50, ms: {statistics.median(gaps):.1f}, of {', '.join(f'{gap:.1f}' for gap in gaps)}"
                )
                return 0
            if given.scale:
                scale(mesh, given.live, probe=loads[0], rounds=given.rounds)
                return 0
            with (
                celery(folder / "celery", stacks.create_database(server, "canvas"), given.poll) as theirs,
                dbos(folder / "dbos", stacks.create_database(server, "dbos"), given.poll) as others,
            ):
                compare((mesh_flows(mesh), theirs, others), loads, rounds=given.rounds, idle=given.idle)
    return 0


if __name__ == "__main__":
    sys.exit(main())
