"""What the gates of providers cost the lease path: the same leases side by side, of a device's work and of calls."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import psutil

from atelier_cli.embedded.postgres import PostgresServer
from atelier_cli.embedded.process import RunningServer, free_ports
from meshkit.db import Database, migrate
from meshkit.topology import TASKS
from services.tasks.domain import SessionRecord, lane_of, new_task
from services.tasks.identifiers import time_ordered_id
from services.tasks.postgres.store import PostgresTaskStore
from services.tasks.scheduling.scheduler import Scheduler
from services.tasks.store import Creation

PROVIDERS = {"without a gate": "LOCAL", "with a gate": "VERTEX"}
TYPE = "GENERATION"
TURN = 5
SESSION_SECONDS = 3600.0


def main() -> int:
    """Lease the same number of tasks from both queues by turns, and print what polls take, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--polls", type=int, default=600, help="polls of each kind")
    parser.add_argument("--leases", type=int, default=8, help="leases a poll")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o711)
        server = PostgresServer(
            folder / "postgres", free_ports(1)[0], secrets.token_urlsafe(12), folder / "log", durable=True
        )
        running = RunningServer(server)
        running.start()
        try:
            found = asyncio.run(measure(server.dsn("postgres"), given.polls, given.leases))
        finally:
            running.stop()
    for name, cost in found.items():
        print(
            f"{name}: {cost.seconds * 1e3:.2f} ms a poll of {given.leases} leases, "
            f"{cost.processor * 1e3:.2f} ms of processor"
        )
    plain, gated = (found[name] for name in PROVIDERS)
    print(f"ratio: {gated.seconds / plain.seconds:.3f}, of processor {gated.processor / plain.processor:.3f}")
    return 0


@dataclass(frozen=True, slots=True)
class PollCost:
    """What a poll takes.

    Attributes:
        seconds: From its start to its leases, the median.
        processor: Seconds of processor, of this process and of PostgreSQL, on average.
    """

    seconds: float
    processor: float


async def measure(dsn: str, polls: int, leases: int) -> dict[str, PollCost]:
    """Return what polls of each kind take."""
    await migrate(dsn, TASKS.schema, TASKS.migrations)
    database = Database(dsn, schema=TASKS.schema)
    await database.open()
    store = PostgresTaskStore(database)
    scheduler = Scheduler(store, costs={}, weights={}, answer_bytes=1 << 24)
    taken: dict[str, list[float]] = {name: [] for name in PROVIDERS}
    used: dict[str, list[float]] = {name: [] for name in PROVIDERS}
    sequences = dict.fromkeys(PROVIDERS, 0)

    async def lease(name: str) -> None:
        sequences[name] += 1
        begun = time.perf_counter()
        poll = scheduler.park(
            sessions[name], sequence=sequences[name], max_leases=leases, warm=frozenset(), full_tenants=frozenset()
        )
        given = await scheduler.wait(poll, 10)
        taken[name].append(time.perf_counter() - begun)
        if len(given) != leases:
            raise RuntimeError(f"{name}: {len(given)} leases in place of {leases}")

    try:
        sessions = {}
        for name, provider in PROVIDERS.items():
            await fill(store, provider, polls * leases)
            pairs = (lane_of(TYPE, provider),)
            sessions[name] = SessionRecord(uuid4(), "bench", name, "bench", (provider,), leases, pairs)
            await store.open_session(sessions[name], SESSION_SECONDS)
        # By turns, and so that neither is always the first of two.
        for turn in range(polls // TURN):
            for name in sorted(sessions, reverse=bool(turn % 2)):
                before = _processor_seconds()
                for _ in range(TURN):
                    await lease(name)
                used[name].append((_processor_seconds() - before) / TURN)
    finally:
        await scheduler.close()
        await database.close()
    return {name: PollCost(statistics.median(taken[name]), statistics.fmean(used[name])) for name in PROVIDERS}


def _processor_seconds() -> float:
    """Of this process, and of the server that it has started."""
    used = time.process_time()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            times = child.cpu_times()
            used += times.user + times.system
    return used


async def fill(store: PostgresTaskStore, provider: str, count: int, *, task_type: str = TYPE, queue: str = "") -> None:
    """Write waiting tasks of ten tenants, in the provider's own queue unless another is named."""
    for first in range(0, count, 100):
        creations = []
        for number in range(first, min(count, first + 100)):
            record = new_task(
                task_id=time_ordered_id(datetime.now(UTC)),
                tenant=f"t{number % 10}",
                task_type=task_type,
                priority=0,
                queue_name=queue or provider,
                provider_type=provider,
                now=datetime.now(UTC),
                origin_instance="bench",
                origin_zone=None,
                origin_reference=None,
                workflow_id=None,
                webhook_url=None,
                timeout_seconds=60.0,
                warm_keys=(),
                traceparent="",
                spec=b"",
                body=b"",
            )
            creations.append(Creation(record, b"", lambda _: b""))
        await store.create_many(creations)


if __name__ == "__main__":
    sys.exit(main())
