"""How many tasks are leased and completed a second, by replicas and by workers, and how soon an idle worker gets one.

Replicas of the tasks service, PostgreSQL with fsync on, NATS and the simulated workers (`bench.simulated_workers`) are
processes of this machine. The first table takes tasks that wait already, so that nothing but dispatch is measured; the
second creates them at a steady rate while all workers wait.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

import psutil
import psycopg

from atelier_cli import health
from atelier_cli.embedded.nats import NatsServer
from atelier_cli.embedded.postgres import PostgresServer
from atelier_cli.embedded.process import Launch, RunningServer, free_ports, spawn, stop
from atelier_cli.embedded.s3 import S3Ports, S3Server
from bench.gates import fill
from bench.idle import MEBIBYTE, private_bytes
from bench.simulated_workers import QUEUE
from bench.stacks import ROOT, create_database
from meshkit.db import Database, migrate
from meshkit.topology import TASKS
from services.tasks.postgres.store import PostgresTaskStore

BOUND_MS = 20.0
RATE = 100.0
# Waiting tasks for each second that is measured; more than two cores dispatch.
_BACKLOG_A_SECOND = 2000
_WARM_SECONDS = 1.0
# Until a fleet at rest has no poll left that is new.
_REST_SECONDS = 4.0
_READY_SECONDS = 120.0
# A process of one thread of Python, or the machine, that has less than this left is the limit.
_SPENT = 0.85


@dataclass(frozen=True, slots=True)
class DispatchCase:
    """One line of the tables: a fleet at some replicas."""

    replicas: int
    workers: int
    slots: int
    rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class DispatchFigures:
    """What came of it.

    Attributes:
        leased: Leases that reached a worker, a second.
        completed: Completions that were taken, a second.
        cores: Processors that were busy, by part: `postgres`, `tasks` (all replicas), `workers`, `nats`.
        memory: MiB once the workers were there, by part, in the same way; pages that processes share count once.
        sent_p99: Milliseconds from the sending of a create until its lease reached a worker; 99 of 100 within it.
        answered_p99: The same from the answer to the create.
        sent_p50: The median of `sent_p99`'s times.
        answered_p50: The median of `answered_p99`'s times.
        errors: Calls that failed.
        lost: Creates that failed, or whose lease did not come within ten seconds.
        left: Tasks that still waited at the end.
    """

    leased: float
    completed: float
    cores: Mapping[str, float]
    memory: Mapping[str, int]
    sent_p50: float = 0.0
    sent_p99: float = 0.0
    answered_p50: float = 0.0
    answered_p99: float = 0.0
    errors: int = 0
    lost: int = 0
    left: int = 0

    def microseconds(self, part: str) -> float:
        """Return what a task takes of the processor in a part."""
        return self.cores[part] / max(self.completed, 1e-9) * 1e6

    def limit(self, replicas: int) -> str:
        """Name what has nothing left: the machine, or a process that has one thread."""
        found = []
        if sum(self.cores.values()) >= _SPENT * (os.cpu_count() or 1):
            found.append("the machine")
        if self.cores["tasks"] >= _SPENT * replicas:
            found.append("tasks")
        if self.cores["workers"] >= _SPENT:
            found.append("the simulation")
        return ", ".join(found) or "the workers' round trips"


class DispatchStack:
    """The servers, and replicas of tasks on databases of their own.

    Args:
        folder: Where they keep their files; PostgreSQL's user must be able to pass through it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._secret = secrets.token_urlsafe(32)
        self._numbers = iter(range(10**6))
        self.postgres = PostgresServer(
            folder / "postgres", free_ports(1)[0], secrets.token_urlsafe(12), folder / "postgres.log", durable=True
        )
        self.nats = NatsServer(folder / "nats", free_ports(1)[0], secrets.token_urlsafe(12), folder / "nats.log")
        self.store = S3Server(
            folder / "s3",
            S3Ports(*free_ports(10)),
            access_key=secrets.token_hex(8),
            secret_key=secrets.token_urlsafe(24),
            log=folder / "s3.log",
        )
        self._running: list[RunningServer] = []

    def __enter__(self) -> Self:
        for server in (self.postgres, self.nats, self.store):
            self._running.append(RunningServer(server))
            self._running[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in reversed(self._running):
            each.stop()

    def measure(self, case: DispatchCase) -> DispatchFigures:
        """Run one case, on a database that has seen nothing before."""
        name = f"dispatch{next(self._numbers)}"
        dsn = create_database(self.postgres, name)
        backlog = 0 if case.rate else int((case.seconds + _WARM_SECONDS) * _BACKLOG_A_SECOND)
        asyncio.run(_prepare(dsn, backlog))
        with self._replicas(dsn, case.replicas) as replicas, self._fleet(case, list(replicas.values())) as fleet:
            parts = {
                "postgres": [self._pid(0)],
                "tasks": list(replicas),
                "workers": [fleet.process.pid],
                "nats": [self._pid(1)],
            }
            fleet.expect("ready")
            fleet.go()
            fleet.expect("begun")
            memory = {part: sum(map(private_bytes, pids)) // MEBIBYTE for part, pids in parts.items()}
            before = {part: _processor_seconds(pids) for part, pids in parts.items()}
            begun = time.perf_counter()
            found = fleet.read()
            passed = time.perf_counter() - begun
            used = {part: (_processor_seconds(pids) - before[part]) / passed for part, pids in parts.items()}
        with psycopg.connect(dsn, autocommit=True) as connection:
            row = connection.execute("SELECT count(*) FROM tasks.tasks WHERE status = 'PENDING'").fetchone()
        with psycopg.connect(self.postgres.dsn("postgres"), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        assert row is not None
        return _figures(found, used, memory, row[0])

    def _pid(self, index: int) -> int:
        pid = self._running[index].pid
        assert pid is not None
        return pid

    @contextmanager
    def _replicas(self, dsn: str, count: int) -> Iterator[dict[int, str]]:
        """Yield the addresses of replicas that serve, by process."""
        env = {
            "ATELIER_DATABASE_URL": dsn,
            "ATELIER_NATS_URL": self.nats.url,
            "ATELIER_AUTH_SECRET": self._secret,
            "ATELIER_S3_ENDPOINT": self.store.endpoint,
            "ATELIER_S3_ACCESS_KEY": self.store.access_key,
            "ATELIER_S3_SECRET_KEY": self.store.secret_key,
            "ATELIER_S3_BUCKET": "atelier",
            "ATELIER_ENABLE_NOOP": "true",
            "ATELIER_LOG_LEVEL": "warning",
        }
        with ExitStack() as stack:
            addresses = {}
            for port in free_ports(count):
                address = f"127.0.0.1:{port}"
                process = spawn(
                    Launch(
                        argv=(sys.executable, "-m", TASKS.module),
                        log=self._folder / f"tasks-{port}.log",
                        env={**env, "ATELIER_LISTEN": address},
                        cwd=ROOT,
                    )
                )
                stack.callback(stop, process, signal.SIGTERM)
                addresses[process.pid] = address
            until = time.monotonic() + _READY_SECONDS
            while not all(health.grpc_serves(address) for address in addresses.values()):
                if time.monotonic() > until:
                    raise TimeoutError("a replica of tasks does not serve")
                time.sleep(0.1)
            yield addresses

    @contextmanager
    def _fleet(self, case: DispatchCase, addresses: Sequence[str]) -> Iterator[FleetProcess]:
        command = [sys.executable, "-m", "bench.simulated_workers", *addresses]
        command += ["--workers", str(case.workers), "--slots", str(case.slots), "--seconds", str(case.seconds)]
        command += ["--rate", str(case.rate), "--warm", str(_REST_SECONDS if case.rate else _WARM_SECONDS)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "ATELIER_AUTH_SECRET": self._secret},
        )
        try:
            yield FleetProcess(process)
        finally:
            process.kill()
            process.communicate()


class FleetProcess:
    """The process of the simulated workers.

    Args:
        process: It, with pipes.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def expect(self, word: str) -> None:
        """Wait for a word of it.

        Raises:
            RuntimeError: It says something else, or has ended.
        """
        if (said := self.read()) != word:
            raise RuntimeError(f"the workers say {said!r} in place of {word!r}")

    def go(self) -> None:
        """Have the workers ask for work."""
        pipe = _pipe(self.process.stdin)
        pipe.write("go\n")
        pipe.flush()

    def read(self) -> Any:
        """Return the next that it says.

        Raises:
            RuntimeError: It has ended.
        """
        line = _pipe(self.process.stdout).readline()
        if not line:
            raise RuntimeError("the process of the workers has ended")
        return json.loads(line)


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _figures(
    found: Mapping[str, Any], cores: Mapping[str, float], memory: Mapping[str, int], left: int
) -> DispatchFigures:
    sent, answered = found["sent_ms"], found["answered_ms"]
    return DispatchFigures(
        leased=found["leased"] / found["seconds"],
        completed=found["completed"] / found["seconds"],
        cores={part: round(used, 3) for part, used in cores.items()},
        memory=memory,
        sent_p50=_quantile(sent, 0.5),
        sent_p99=_quantile(sent, 0.99),
        answered_p50=_quantile(answered, 0.5),
        answered_p99=_quantile(answered, 0.99),
        errors=found["errors"],
        lost=found["lost"],
        left=left,
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 2) if ordered else 0.0


async def _prepare(dsn: str, backlog: int) -> None:
    """Make the tables, and tasks that wait in them."""
    await migrate(dsn, TASKS.schema, TASKS.migrations)
    database = Database(dsn, schema=TASKS.schema)
    await database.open()
    try:
        await fill(PostgresTaskStore(database), "LOCAL", backlog, task_type="NOOP", queue=QUEUE)
    finally:
        await database.close()


def _processor_seconds(pids: Sequence[int]) -> float:
    used = 0.0
    for pid in pids:
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            try:
                times = each.cpu_times()
            except psutil.Error:  # it has ended meanwhile
                continue
            used += times.user + times.system
    return used


def rates(stack: DispatchStack, given: argparse.Namespace) -> None:
    """Measure how much is dispatched of what waits, and print it."""
    lines = []
    for replicas in given.replicas:
        for workers in given.workers:
            case = DispatchCase(replicas, workers, given.slots, 0, given.seconds)
            found = stack.measure(case)
            print(json.dumps({"measured": "rate", **asdict(case), **asdict(found)}), flush=True)
            parts = " | ".join(f"{found.cores[part]:.2f}" for part in ("postgres", "tasks", "workers", "nats"))
            each = " | ".join(f"{found.microseconds(part):.0f}" for part in ("postgres", "tasks"))
            lines.append(
                f"| {replicas} | {workers} | {found.leased:.0f} | {found.completed:.0f} | {parts} | {each} | "
                f"{found.limit(replicas)}{'' if found.left else ', no task left'} |"
            )
    print(
        "\n| replicas of tasks | workers | leased/s | completed/s | cores: PostgreSQL | tasks | workers | NATS "
        "| us a task: PostgreSQL | tasks | what is at its limit |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(lines), flush=True)


def waits(stack: DispatchStack, given: argparse.Namespace) -> bool:
    """Measure how soon idle workers get what is created, print it, and tell whether the bound holds."""
    lines, held = [], True
    for replicas in given.replicas:
        case = DispatchCase(replicas, max(given.workers), given.slots, given.rate, given.seconds)
        found = stack.measure(case)
        held = held and not found.lost and found.answered_p99 < BOUND_MS
        print(json.dumps({"measured": "wait", **asdict(case), **asdict(found)}), flush=True)
        parts = " | ".join(f"{found.cores[part]:.2f}" for part in ("postgres", "tasks", "workers"))
        lines.append(
            f"| {replicas} | {case.workers} | {case.rate:.0f} | {found.answered_p50:.1f} | {found.answered_p99:.1f} "
            f"| {found.sent_p50:.1f} | {found.sent_p99:.1f} | {parts} |"
        )
    print(
        "\n| replicas of tasks | idle workers | creates/s | create answered to lease, ms: p50 | p99 "
        "| create sent to lease, ms: p50 | p99 | cores: PostgreSQL | tasks | workers |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(lines), flush=True)
    return held


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> int:
    """Measure, print the tables; 1 where a lease takes too long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=_numbers, default=[1, 2, 4], help="of the tasks service, such as 1,2,4")
    parser.add_argument("--workers", type=_numbers, default=[10, 100, 1000], help="such as 10,100,1000")
    parser.add_argument("--slots", type=int, default=1, help="attempts that a worker runs at once")
    parser.add_argument("--seconds", type=float, default=10, help="of each line")
    parser.add_argument("--rate", type=float, default=RATE, help="creates a second, of the second table")
    parser.add_argument("--only", choices=("rates", "waits"), help="one table alone")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o711)
        with DispatchStack(folder) as stack:
            if given.only != "waits":
                rates(stack, given)
            held = given.only == "rates" or waits(stack, given)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
