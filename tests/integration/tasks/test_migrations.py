import asyncio
import uuid
from collections.abc import Callable

import psycopg
import pytest

from meshkit import migration
from meshkit.topology import TASKS
from services.tasks.domain import SessionRecord
from services.tasks.postgres import sessions

SCHEMA, PACKAGE = TASKS.schema, TASKS.migrations


async def test_the_outbox_keeps_what_waits_although_a_replica_of_before_prunes(
    make_database: Callable[[str], str],
) -> None:
    dsn = make_database("tasks_outbox")
    await asyncio.to_thread(migration.upgrade, dsn, SCHEMA, PACKAGE, "0003")
    options = f"-c search_path={SCHEMA} -c lock_timeout=10s"
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True, options=options) as conn:
        await conn.execute("ALTER TABLE outbox ADD COLUMN published_at timestamptz")
        await conn.execute(
            "INSERT INTO outbox (event_id, subject, payload, published_at) SELECT gen_random_uuid(), 's', 'x', "
            "CASE WHEN n > 5 THEN now() END FROM generate_series(1, 10) n"
        )
        async with conn.transaction():
            await conn.execute("INSERT INTO outbox (event_id, subject, payload) VALUES (gen_random_uuid(), 's', 'x')")
            upgrade = asyncio.create_task(asyncio.to_thread(migration.upgrade, dsn, SCHEMA, PACKAGE))
            await _locks(conn)
            await conn.execute("DELETE FROM outbox WHERE published_at IS NOT NULL")
        await upgrade
        cursor = await conn.execute("SELECT count(*) FROM outbox")
        assert await cursor.fetchone() == (6,)


async def test_a_session_of_the_release_before_keeps_what_it_means_and_a_new_one_means_nothing_to_it(
    make_database: Callable[[str], str],
) -> None:
    dsn = make_database("tasks_pairs")
    await asyncio.to_thread(migration.upgrade, dsn, SCHEMA, PACKAGE, "0004")
    times = "now(), now(), now() + interval '1 hour'"
    columns = "id, subject, name, kind, queues, slots, opened_at, last_heartbeat, expires_at"
    older = (
        f"INSERT INTO sessions ({columns}, task_types, provider_types) "
        f"VALUES (%s, 's', 'w', 'local', '{{inference}}', 1, {times}, '{{NOOP,REFINE}}', '{{LOCAL,FAL_STANDARD}}')"
    )
    options = f"-c search_path={SCHEMA}"
    before, during, after = (uuid.uuid4() for _ in range(3))
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True, options=options) as conn:
        await conn.execute(older, (before,))
        await asyncio.to_thread(migration.upgrade, dsn, SCHEMA, PACKAGE)
        await conn.execute(older, (during,))
        await sessions.opened(
            conn, SessionRecord(after, "s", "w", "local", ("inference",), 1, ("REFINE/FAL_STANDARD",)), 3600
        )
        for session_id in (before, during):
            found = await sessions.find(conn, session_id)
            assert found is not None
            assert found.lanes == {"NOOP/LOCAL", "NOOP/FAL_STANDARD", "REFINE/LOCAL", "REFINE/FAL_STANDARD"}
        found = await sessions.find(conn, after)
        assert found is not None
        assert found.lanes == {"REFINE/FAL_STANDARD"}
        cursor = await conn.execute("SELECT task_types, provider_types FROM sessions WHERE id = %s", (after,))
        assert await cursor.fetchone() == ([], [])


async def test_a_migration_that_waits_for_a_backup_holds_up_nobody(
    make_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "_PAUSE_SECONDS", (0.2, 0.4))
    dsn = make_database("tasks_backup")
    await asyncio.to_thread(migration.upgrade, dsn, SCHEMA, PACKAGE, "0021")
    options = f"-c search_path={SCHEMA} -c statement_timeout=20s"
    async with (
        await psycopg.AsyncConnection.connect(dsn, autocommit=True, options=options) as backup,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True, options=options) as caller,
    ):
        async with backup.transaction():
            await backup.execute("SELECT count(*) FROM tasks")
            upgrade = asyncio.create_task(asyncio.to_thread(migration.upgrade, dsn, SCHEMA, PACKAGE))
            await _locks(backup, "tasks")
            await caller.execute("SELECT count(*) FROM tasks")  # while the backup lasts
            assert not upgrade.done()
        await upgrade
        cursor = await caller.execute("SELECT to_regclass('task_changes') IS NOT NULL")
        assert await cursor.fetchone() == (True,)


async def _locks(conn: psycopg.AsyncConnection[tuple[int]], table: str = "outbox") -> None:
    """Waits until the migration waits for a lock."""
    async with asyncio.timeout(60):
        while True:
            cursor = await conn.execute(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = %s::regclass", (table,)
            )
            if await cursor.fetchone() != (0,):
                return
            await asyncio.sleep(0.02)
