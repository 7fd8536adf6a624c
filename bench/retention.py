"""What it costs creates that old tasks are deleted: creates a second with and without, by turns on one mesh.

The mesh has so many old tasks, which are written into its tables directly. In every other turn an age is set, so that
tasks deletes them at its own pace; in the others it is taken back. PostgreSQL is durable, as in production.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psycopg

from bench.load import load
from bench.stacks import Stack, create_database, mesh, postgres
from meshkit.retention import EVERYONE

# Creates may be slower by so much while old tasks are deleted.
MOST_LOST = 0.1
_CHUNK = 500_000
_AGE_DAYS = 30

# Three attempts of four tasks, ten tenants, half of the tasks the first one's. Every hundredth task names a file.
_TASKS = """
INSERT INTO tasks.tasks (id, kind, tenant, task_type, status, priority, queue_name, provider_type, lane, created_at,
    updated_at, started_at, completed_at, attempt, retry_count, released, is_resumed, resume_attempt_count, version,
    progress, errors, origin_instance, origin_zone, is_deleted, charged, timeout_seconds, warm_keys, traceparent,
    spec, body, result_objects)
SELECT ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'TASK',
    CASE WHEN n %% 2 = 0 THEN 'old0' ELSE 'old' || 1 + n %% 9 END, 'NOOP', 'COMPLETED', n %% 3, 'inference', 'LOCAL',
    'NOOP/LOCAL', m.at, m.at, m.at, m.at + interval '2 s', 1, 0, 0, false, 0, 3, 100, '{}', 'shop', 'eu', false, 1, 60,
    '{}', '', decode(repeat('00', 100), 'hex'), decode(repeat('00', 150), 'hex'),
    CASE WHEN n %% 100 = 0 THEN ARRAY['noops/x/1/image.png'] ELSE '{}'::text[] END
FROM generate_series(%(first)s::bigint, %(last)s::bigint) n,
    LATERAL (SELECT now() - interval '400 days' + n * interval '1 s' AS at) m
"""
_ATTEMPTS = """
INSERT INTO tasks.attempts (task_id, attempt, session, executor_instance, started_at, ended_at, outcome)
SELECT ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 1, gen_random_uuid(), 'w', now(), now(),
    'COMPLETED'
FROM generate_series(%(first)s::bigint, %(last)s::bigint) n WHERE n %% 4 <> 0
"""
_COUNTS = """
INSERT INTO tasks.task_counts
SELECT tenant, origin_instance, coalesce(origin_zone, ''), task_type, provider_type, status, count(*)
FROM tasks.tasks WHERE tenant LIKE 'old%' GROUP BY 1, 2, 3, 4, 5, 6
"""
_LEFT = "SELECT coalesce(sum(tasks), 0)::bigint FROM tasks.task_counts WHERE tenant LIKE 'old%'"


def main() -> int:
    """Fill, create by turns, print the medians; fail where deletion costs creates too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="old tasks")
    parser.add_argument("--count", type=int, default=3000, help="creates of a turn")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each kind")
    parser.add_argument("--clients", type=int, default=16)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as scratch:
        folder = Path(scratch)
        settings = {
            "ATELIER_TRAINER": "off",
            "ATELIER_RETENTION_INTERVAL_SECONDS": "0.5",
            "ATELIER_KEEP_TASK_IDS_DAYS": "36500",
        }
        with postgres(folder) as server:
            dsn = create_database(server, "bench")
            own = folder / "mesh"
            own.mkdir(mode=0o711)
            with mesh(own, dsn, settings) as stack:
                begun = time.monotonic()
                fill(dsn, given.rows)
                print(f"{given.rows:,} old tasks written in {time.monotonic() - begun:.0f} s", flush=True)
                return _measure(stack, given)


def fill(dsn: str, rows: int) -> None:
    """Write old tasks and their attempts: without triggers, and the indexes that creates do not need at the end."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("SET maintenance_work_mem = '512MB'")
        found = connection.execute(
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'tasks' AND tablename = 'tasks' "
            "AND indexname <> 'tasks_pkey'"
        ).fetchall()
        for name, _ in found:
            connection.execute(f'DROP INDEX tasks."{name}"')
        for first in range(1, rows + 1, _CHUNK):
            chunk = {"first": first, "last": min(rows, first + _CHUNK - 1)}
            connection.execute(_TASKS, chunk)
            connection.execute(_ATTEMPTS, chunk)
        for _, definition in found:
            connection.execute(definition)
        connection.execute(_COUNTS)
        connection.execute("VACUUM (ANALYZE) tasks.tasks")
        connection.execute("VACUUM (ANALYZE) tasks.attempts")
        connection.execute("CHECKPOINT")


def _measure(stack: Stack, given: argparse.Namespace) -> int:
    rates: Mapping[str, list[float]] = {"keeps": [], "deletes": []}
    pruned: list[float] = []
    with psycopg.connect(stack.dsn, autocommit=True) as connection:
        for turn in range(-1, given.rounds):  # what is done once is not counted
            for name in rates if turn % 2 else reversed(list(rates)):
                _set_age(connection, _AGE_DAYS if name == "deletes" else 0)
                time.sleep(2.0)  # a batch that is under way ends
                before, begun = _left(connection), time.monotonic()
                created = given.count if turn >= 0 else given.count // 4
                asyncio.run(
                    load(
                        stack.url,
                        count=created,
                        clients=given.clients,
                        body=stack.body.encode(),
                        headers=stack.headers,
                    )
                )
                seconds = time.monotonic() - begun
                if turn >= 0:
                    rates[name].append(created / seconds)
                    if name == "deletes":
                        pruned.append((before - _left(connection)) / seconds)
        _set_age(connection, 0)
    without, beside = statistics.median(rates["keeps"]), statistics.median(rates["deletes"])
    lost = 1 - beside / without
    print("| old tasks | creates/s, nothing deleted | creates/s, old tasks deleted | slower by | deleted/s |")
    print("|---|---|---|---|---|")
    print(
        f"| {given.rows:,} | {without:.0f} ({_spread(rates['keeps'])}) | {beside:.0f} ({_spread(rates['deletes'])}) "
        f"| {lost:.1%} | {statistics.median(pruned):.0f} |"
    )
    if not min(pruned) > 0:
        print("nothing was deleted in a turn: use more --rows or a larger --count")
        return 1
    return int(lost > MOST_LOST)


def _set_age(connection: psycopg.Connection[tuple[int]], days: int) -> None:
    connection.execute(
        "INSERT INTO tasks.retention_rules (kind, tenant, days) VALUES ('TASKS', %s, %s) "
        "ON CONFLICT (kind, tenant) DO UPDATE SET days = excluded.days",
        (EVERYONE, days),
    )


def _left(connection: psycopg.Connection[tuple[int]]) -> int:
    # Counted by the counters, which cost nothing; the notes are what is not added up yet.
    row = connection.execute(
        f"SELECT ({_LEFT}) + coalesce(sum(CASE WHEN status IS NULL THEN -tasks ELSE tasks END), 0)::bigint "  # noqa: S608 -- a constant
        "FROM tasks.task_changes WHERE tenant LIKE 'old%' AND (status IS NULL) <> (status_before IS NULL)"
    ).fetchone()
    assert row is not None
    return row[0]


def _spread(rates: Sequence[float]) -> str:
    return f"{min(rates):.0f} to {max(rates):.0f}"


if __name__ == "__main__":
    sys.exit(main())
