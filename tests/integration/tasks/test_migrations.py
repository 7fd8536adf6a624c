import asyncio
from collections.abc import Callable

import psycopg

from meshkit import migration
from meshkit.topology import TASKS

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


async def _locks(conn: psycopg.AsyncConnection[tuple[int]]) -> None:
    """Waits until the migration waits for a lock."""
    async with asyncio.timeout(20):
        while True:
            cursor = await conn.execute(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'outbox'::regclass"
            )
            if await cursor.fetchone() != (0,):
                return
            await asyncio.sleep(0.02)
