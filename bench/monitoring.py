"""What operators' pages cost at a million tasks and a million workflows.

Every list by one filter on its first page and its hundredth, statistics, queues: how long an answer takes, and what of
processors, which others that load the machine do not change much.

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
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psutil
import psycopg

from atelier_cli.embedded.postgres import PostgresServer
from atelier_cli.embedded.process import RunningServer, free_ports
from bench import fanout
from meshkit.db import Database, migrate
from meshkit.topology import TASKS, WORKFLOWS, ServiceSpec
from services.tasks.catalog import QUEUES
from services.tasks.monitoring.domain import TaskQuery
from services.tasks.postgres.monitoring import PostgresMonitoring
from services.workflows.domain import WorkflowStatus
from services.workflows.postgres.store import PostgresWorkflowStore
from services.workflows.store import Page, WorkflowFilter

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
# The same of workflows. Their steps are in no list of monitoring.
_FILL_WORKFLOWS = """
INSERT INTO workflows (id, tenant, name, status, on_failure, config, suppress_subtask_events, origin_instance,
    origin_zone, total_steps, completed_steps, final_step_id, errors, started_at, completed_at, created_at, updated_at,
    is_deleted, version, traceparent)
SELECT gen_random_uuid(), CASE WHEN n %% 2 = 0 THEN 't0' ELSE 't' || 1 + n %% 9 END,
    'lookbook ' || (ARRAY['spring', 'summer', 'autumn', 'winter'])[1 + n %% 4] || ' ' || substr(md5(n::text), 1, 8),
    w.status, 'cancel', decode(repeat('00', 300), 'hex'), true, CASE WHEN n %% 1000 = 8 THEN 'rare' ELSE 'shop' END,
    CASE WHEN n %% 1000 = 10 THEN 'us' ELSE 'eu' END, 3, CASE WHEN w.status = 'COMPLETED' THEN 3 ELSE 1 END, 'last',
    CASE WHEN w.status = 'FAILED' THEN ARRAY['broken'] ELSE ARRAY[]::text[] END, now() - n * interval '100 ms',
    CASE WHEN w.status <> 'RUNNING' THEN now() - n * interval '100 ms' + interval '2 s' END,
    now() - n * interval '100 ms', now(), false, 3, ''
FROM generate_series(1, %(workflows)s) n CROSS JOIN LATERAL (
    SELECT CASE WHEN n <= %(running)s THEN 'RUNNING' WHEN n %% 1000 = 4 THEN 'FAILED' ELSE 'COMPLETED' END AS status) w
"""


class AnswerTime(NamedTuple):
    """What a question took, in milliseconds: from its asking to its answer, and of processors."""

    wall: float
    processor: float


def main() -> int:
    """Fill a database, measure each question, print the medians; fail above the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000, help="0 for none")
    parser.add_argument("--workflows", type=int, default=1_000_000, help="0 for none")
    parser.add_argument("--waiting", type=int, default=10_000, help="of these, so many have not begun, or not ended")
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
            rows: dict[str, list[AnswerTime]] = {}
            for measured, count in ((measure_tasks, given.tasks), (measure_workflows, given.workflows)):
                if count:
                    rows |= asyncio.run(measured(server.dsn("postgres"), count, given.waiting))
        finally:
            running.stop()
    which = (
        f"{given.tasks:,} tasks, {given.workflows:,} workflows, half of each one tenant's, {given.waiting:,} waiting"
    )
    print(f"| {which} | median of {REPEATS}, ms | slowest, ms | processor, ms |\n|---|---|---|---|")
    medians = []
    for name, taken in rows.items():
        walls, processors = zip(*taken, strict=True)
        medians.append(statistics.median(walls))
        print(f"| {name} | {medians[-1]:.1f} | {max(walls):.1f} | {statistics.median(processors):.1f} |")
    return int(any(median > BOUND_MS for median in medians))


def _fan_out(clients: int, events: int) -> int:
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as scratch:
        found = fanout.measure(Path(scratch), clients, events)
    columns = ("median, ms", "p99, ms", "slowest, ms", "the gateway's processor, ms")
    print(f"| {events} events | {' | '.join(columns)} |\n|---|---|---|---|---|")
    print(found.row(clients))
    return int(found.p99 > fanout.BOUND_MS)


async def measure_tasks(dsn: str, tasks: int, waiting: int) -> dict[str, list[AnswerTime]]:
    """Return by question what each of its repetitions took."""
    async with _filled(dsn, TASKS, _FILL, {"tasks": tasks, "waiting": waiting}) as database:
        monitoring = PostgresMonitoring(database)
        await monitoring.fold()
        await _vacuum(dsn)
        return await _timed_all(dsn, questions(monitoring))


async def measure_workflows(dsn: str, workflows: int, running: int) -> dict[str, list[AnswerTime]]:
    """Return by question about workflows what each of its repetitions took."""
    async with _filled(dsn, WORKFLOWS, _FILL_WORKFLOWS, {"workflows": workflows, "running": running}) as database:
        store = PostgresWorkflowStore(database)
        await store.fold()
        await _vacuum(dsn)
        return await _timed_all(dsn, workflow_questions(store))


@asynccontextmanager
async def _filled(dsn: str, service: ServiceSpec, fill: str, values: dict[str, int]) -> AsyncIterator[Database]:
    await migrate(dsn, service.schema, service.migrations)
    database = Database(dsn, schema=service.schema, statement_timeout_seconds=600.0)
    await database.open()
    try:
        async with database.transaction() as conn:
            await conn.execute("SET LOCAL statement_timeout TO 0")
            await conn.execute(fill, values)
        yield database
    finally:
        await database.close()


async def _vacuum(dsn: str) -> None:
    # A million notes in one transaction leave a table of dead rows, as the loop, which folds a few at a time, never
    # does; PostgreSQL's own vacuum would come within a minute.
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute("VACUUM (ANALYZE)")


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
        "provider_type=LOCAL": {"provider_type": "LOCAL"},
        "provider_type=VERTEX (rare)": {"provider_type": "VERTEX"},
        "origin_instance=shop": {"origin_instance": "shop"},
        "origin_instance=rare": {"origin_instance": "rare"},
        "origin_zone=eu": {"origin_zone": "eu"},
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


def workflow_questions(store: PostgresWorkflowStore) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Return what is measured of workflows, by its name."""
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    filters: dict[str, dict[str, Any]] = {
        "no filter": {},
        "status=COMPLETED": {"status": WorkflowStatus.COMPLETED},
        "status=FAILED (rare)": {"status": WorkflowStatus.FAILED},
        "status=RUNNING": {"status": WorkflowStatus.RUNNING},
        "origin_instance=shop": {"origin_instance": "shop"},
        "origin_instance=rare": {"origin_instance": "rare"},
        "origin_zone=eu": {"origin_zone": "eu"},
        "origin_zone=us (rare)": {"origin_zone": "us"},
        "created_after": {"created_after": hour_ago},
        "created_before": {"created_before": hour_ago},
        "search=autumn": {"search": "autumn"},
        "search=dead (rare)": {"search": "dead"},
    }
    asked: dict[str, Callable[[], Awaitable[Any]]] = {}
    for name, members in filters.items():
        for page in (1, LAST_PAGE):
            for tenant, who in ((TENANT, "a tenant"), (None, "support")):
                which = WorkflowFilter(tenant=tenant, **members)
                asked[f"workflows, {name}, page {page}, {who}"] = _asker(
                    store.list_items, which, Page((page - 1) * PAGE, PAGE)
                )
    for tenant, who in ((TENANT, "a tenant"), (None, "support")):
        asked[f"workflows/stats, {who}"] = _asker(store.stats, WorkflowFilter(tenant=tenant))
        asked[f"workflows/stats of a zone, {who}"] = _asker(
            store.stats, WorkflowFilter(tenant=tenant, origin_zone="us")
        )
    return asked


def _asker(method: Callable[..., Awaitable[Any]], *arguments: Any) -> Callable[[], Awaitable[Any]]:
    async def ask() -> Any:
        return await method(*arguments)

    return ask


async def _timed_all(dsn: str, asked: dict[str, Callable[[], Awaitable[Any]]]) -> dict[str, list[AnswerTime]]:
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        server = psutil.Process(conn.info.backend_pid).parent()
    assert server is not None
    return {name: await timed(ask, server) for name, ask in asked.items()}


async def timed(ask: Callable[[], Awaitable[Any]], server: psutil.Process) -> list[AnswerTime]:
    """Ask once to warm up, then so often as is measured."""
    await ask()
    accounts = [Path(f"/proc/{child.pid}/schedstat") for child in server.children()]
    taken = []
    for _ in range(REPEATS):
        worked, begun = _processor_ms(accounts), time.perf_counter()
        await ask()
        taken.append(AnswerTime((time.perf_counter() - begun) * 1e3, _processor_ms(accounts) - worked))
    return taken


def _processor_ms(accounts: list[Path]) -> float:
    """Time that this process and others have worked; of those that are gone nothing is known."""
    worked = time.process_time() * 1e3
    for account in accounts:
        with suppress(OSError):
            worked += int(account.read_text().split()[0]) / 1e6
    return worked


if __name__ == "__main__":
    sys.exit(main())
