"""What operators' pages cost at a million tasks: every list by one filter, its first 100 pages, statistics, queues.

With `--clients`, what an event takes to as many clients that listen over WebSocket instead.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from atelier_cli.embedded.postgres import PostgresServer
from atelier_cli.embedded.process import RunningServer, free_ports
from bench import fanout
from meshkit.db import Database, migrate
from meshkit.topology import TASKS
from services.tasks.catalog import QUEUES
from services.tasks.monitoring.domain import TaskQuery
from services.tasks.postgres.monitoring import PostgresMonitoring

TENANT = "t0"
PAGE = 50
LAST_PAGE = 100
REPEATS = 5
BOUND_MS = 50.0

# Ten tenants, the first of which has half of the tasks; each rare value is that of one task in a thousand. The newest
# of them wait.
_FILL = """
INSERT INTO tasks (id, kind, tenant, task_type, status, priority, queue_name, provider_type, lane, created_at,
    updated_at, started_at, completed_at, attempt, retry_count, released, is_resumed, resume_attempt_count, version,
    progress, errors, origin_instance, origin_zone, is_deleted, charged, timeout_seconds, warm_keys, traceparent,
    spec, body, result_objects)
SELECT gen_random_uuid(), 'TASK', CASE WHEN n %% 2 = 0 THEN 't0' ELSE 't' || 1 + n %% 9 END,
    CASE WHEN n %% 1000 = 2 THEN 'EDITING' ELSE 'GENERATION' END,
    CASE WHEN n <= %(waiting)s THEN 'PENDING' WHEN n %% 1000 = 4 THEN 'FAILED' ELSE 'COMPLETED' END,
    n %% 3, 'inference', CASE WHEN n %% 1000 = 6 THEN 'VERTEX' ELSE 'LOCAL' END, 'GENERATION/LOCAL',
    now() - n * interval '100 ms', now(),
    CASE WHEN n > %(waiting)s THEN now() - n * interval '100 ms' END,
    CASE WHEN n > %(waiting)s THEN now() - n * interval '100 ms' + interval '2 s' END,
    1, 0, 0, false, 0, 3, 100, CASE WHEN n %% 1000 = 4 THEN ARRAY['broken'] ELSE ARRAY[]::text[] END,
    CASE WHEN n %% 1000 = 8 THEN 'rare' ELSE 'shop' END, CASE WHEN n %% 1000 = 10 THEN 'us' ELSE 'eu' END,
    false, 1, 60, ARRAY[]::text[], '', decode(repeat('00', 300), 'hex'), decode(repeat('00', 500), 'hex'),
    ARRAY[]::text[]
FROM generate_series(1, %(tasks)s) n
"""


def main() -> int:
    """Fill a database, measure each question, print the medians; fail above the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--waiting", type=int, default=10_000, help="of these tasks, so many have not begun")
    parser.add_argument("--clients", type=int, default=0, help="measure events to so many clients instead")
    parser.add_argument("--events", type=int, default=40)
    given = parser.parse_args()
    if given.clients:
        return _fan_out(given.clients, given.events)
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o711)
        server = PostgresServer(
            folder / "postgres", free_ports(1)[0], secrets.token_urlsafe(12), folder / "log", durable=False
        )
        running = RunningServer(server)
        running.start()
        try:
            rows = asyncio.run(measure(server.dsn("postgres"), given.tasks, given.waiting))
        finally:
            running.stop()
    which = f"{given.tasks:,} tasks, half of them one tenant's, {given.waiting:,} waiting"
    print(f"| {which} | median of {REPEATS}, ms | slowest, ms |\n|---|---|---|")
    for name, taken in rows.items():
        print(f"| {name} | {statistics.median(taken):.1f} | {max(taken):.1f} |")
    return int(any(statistics.median(taken) > BOUND_MS for taken in rows.values()))


def _fan_out(clients: int, events: int) -> int:
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as scratch:
        found = fanout.measure(Path(scratch), clients, events)
    columns = ("median, ms", "p99, ms", "slowest, ms", "the gateway's processor, ms")
    print(f"| {events} events | {' | '.join(columns)} |\n|---|---|---|---|---|")
    print(found.row(clients))
    return int(found.p99 > fanout.BOUND_MS)


async def measure(dsn: str, tasks: int, waiting: int) -> dict[str, list[float]]:
    """Return by question what each of its repetitions took, in milliseconds."""
    await migrate(dsn, TASKS.schema, TASKS.migrations)
    database = Database(dsn, schema=TASKS.schema, statement_timeout_seconds=600.0)
    await database.open()
    try:
        async with database.transaction() as conn:
            await conn.execute("SET LOCAL statement_timeout TO 0")
            await conn.execute(_FILL, {"tasks": tasks, "waiting": waiting})
        monitoring = PostgresMonitoring(database)
        await monitoring.fold()
        # A million notes in one transaction leave a table of dead rows, as the loop, which folds a few at a time, never
        # does; PostgreSQL's own vacuum would come within a minute.
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            await conn.execute("VACUUM (ANALYZE)")
        return {name: await timed(ask) for name, ask in questions(monitoring).items()}
    finally:
        await database.close()


def questions(monitoring: PostgresMonitoring) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Return what is measured, by its name."""
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    filters: dict[str, dict[str, Any]] = {
        "no filter": {},
        "status=COMPLETED": {"status": "COMPLETED"},
        "status=FAILED (rare)": {"status": "FAILED"},
        "status=PENDING": {"status": "PENDING"},
        "task_type=GENERATION": {"task_type": "GENERATION"},
        "task_type=EDITING (rare)": {"task_type": "EDITING"},
        "provider_type=VERTEX (rare)": {"provider_type": "VERTEX"},
        "origin_instance=rare": {"origin_instance": "rare"},
        "origin_zone=us (rare)": {"origin_zone": "us"},
        "created_after": {"created_after": hour_ago},
        "created_before": {"created_before": hour_ago},
        "search": {"ids": (UUID("ab000000" + "0" * 24), UUID("ab" + "f" * 30))},
    }
    asked: dict[str, Callable[[], Awaitable[Any]]] = {}
    for name, members in filters.items():
        for page in (1, LAST_PAGE):
            for tenant, who in ((TENANT, "a tenant"), (None, "support")):
                query = TaskQuery(tenant=tenant, skip=(page - 1) * PAGE, limit=PAGE, **members)
                asked[f"tasks, {name}, page {page}, {who}"] = _asker(monitoring.list_tasks, query)
    for tenant, who in ((TENANT, "a tenant"), (None, "support")):
        asked[f"stats, {who}"] = _asker(monitoring.counts, tenant, None, None)
        asked[f"stats of a zone, {who}"] = _asker(monitoring.counts, tenant, None, "us")
        asked[f"queues, {who}"] = _asker(monitoring.queues, QUEUES, tenant)
    asked["workers"] = _asker(monitoring.fleet)
    return asked


def _asker(method: Callable[..., Awaitable[Any]], *arguments: Any) -> Callable[[], Awaitable[Any]]:
    async def ask() -> Any:
        return await method(*arguments)

    return ask


async def timed(ask: Callable[[], Awaitable[Any]]) -> list[float]:
    """Ask once to warm up, then so often as is measured; milliseconds each."""
    await ask()
    taken = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        await ask()
        taken.append((time.perf_counter() - begun) * 1e3)
    return taken


if __name__ == "__main__":
    sys.exit(main())
