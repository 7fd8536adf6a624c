import asyncio
import contextlib
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import errors as pg_errors
from psycopg.rows import dict_row

from meshkit.db import Database, DatabaseUnavailableError
from meshkit.errors import ErrorKind, MeshError

ITEMS = sa.Table(
    "items",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("value", sa.Text),
)


async def values(db: Database) -> list[str]:
    async with db.connection() as conn:
        cursor = await conn.execute("SELECT value FROM items ORDER BY id")
        return [row[0] for row in await cursor.fetchall()]


async def test_a_transaction_is_committed_whole_or_not_at_all(db: Database) -> None:
    async with db.transaction() as conn:
        await conn.execute("INSERT INTO items VALUES (1, 'kept')")
    with pytest.raises(RuntimeError, match="changed my mind"):  # noqa: PT012 -- the block is what is tested
        async with db.transaction() as conn:
            await conn.execute("INSERT INTO items VALUES (2, 'gone')")
            raise RuntimeError("changed my mind")
    assert await values(db) == ["kept"]


async def test_a_connection_sees_its_own_schema_alone(db: Database) -> None:
    async with db.connection() as conn:
        row = await (await conn.execute("SELECT current_schemas(false), current_setting('TimeZone')")).fetchone()
        assert row == ([db.schema], "UTC")


async def test_rows_are_dicts_where_asked_for(db: Database) -> None:
    async with db.connection() as conn, conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute("SELECT 1 AS one")
        assert await cursor.fetchone() == {"one": 1}


async def test_a_statement_that_takes_too_long_is_ended(fresh_postgres_dsn: str) -> None:
    database = Database(fresh_postgres_dsn, schema="public", statement_timeout_seconds=1)
    await database.open()
    with pytest.raises(pg_errors.QueryCanceled):
        async with database.connection() as conn:
            await conn.execute("SELECT pg_sleep(10)")
    async with database.connection() as conn:
        assert (await (await conn.execute("SELECT 1")).fetchone()) == (1,)
    await database.close()


async def test_work_that_lost_its_connections_is_repeated(db: Database) -> None:
    attempts = []

    async def work() -> int:
        async with db.transaction() as conn:
            attempts.append(1)
            await conn.execute("INSERT INTO items VALUES (%s, 'x')", (len(attempts),))
            if len(attempts) == 1:
                await _kill_others(db)
            await conn.execute("SELECT 1")
        return len(attempts)

    assert await db.retrying(work) == 2
    assert len(await values(db)) == 1


@pytest.mark.parametrize("kind", ["pipeline", "transaction"])
async def test_a_database_that_stays_away_is_not_waited_for_again_and_again(kind: str) -> None:
    database = Database("postgresql://a:b@127.0.0.1:9/x", schema="s", acquire_timeout_seconds=0.1)
    with contextlib.suppress(DatabaseUnavailableError):
        await database.open(timeout_seconds=0.1)
    attempts = []

    async def work() -> None:
        attempts.append(1)
        async with getattr(database, kind)():
            pass

    with pytest.raises(DatabaseUnavailableError):
        await database.retrying(work)
    assert len(attempts) == 1
    await database.close()


async def test_every_idle_connection_may_have_died(db: Database) -> None:
    async with asyncio.TaskGroup() as group:  # fills the pool

        async def hold() -> None:
            async with db.connection() as conn:
                await conn.execute("SELECT pg_sleep(0.05)")

        for _ in range(8):
            group.create_task(hold())
    await _kill_others(db)
    for _ in range(8):
        async with db.connection() as conn:
            assert await (await conn.execute("SELECT 1")).fetchone() == (1,)


async def _kill_others(db: Database) -> None:
    async with await psycopg.AsyncConnection.connect(db.dsn, autocommit=True) as admin:
        await admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


async def test_a_deadlock_is_repeated(db: Database) -> None:
    async with db.transaction() as conn:
        await conn.execute("INSERT INTO items VALUES (1, ''), (2, '')")
    both_hold = asyncio.Barrier(2)

    async def cross(first: int, second: int) -> None:
        met = False

        async def work() -> None:
            nonlocal met
            async with db.transaction() as conn:
                await conn.execute("UPDATE items SET value = value || %s WHERE id = %s", ("x", first))
                if not met:
                    met = True
                    await both_hold.wait()
                await conn.execute("UPDATE items SET value = value || %s WHERE id = %s", ("x", second))

        await db.retrying(work)

    await asyncio.gather(cross(1, 2), cross(2, 1))
    assert await values(db) == ["xx", "xx"]


async def test_a_mistake_is_not_repeated(db: Database) -> None:
    attempts = []

    async def work() -> None:
        attempts.append(1)
        async with db.transaction() as conn:
            await conn.execute("SELECT nonsense")

    with pytest.raises(pg_errors.UndefinedColumn):
        await db.retrying(work)
    assert len(attempts) == 1


async def test_an_unreachable_database_is_unavailable() -> None:
    database = Database("postgresql://a:b@127.0.0.1:9/x", schema="s", acquire_timeout_seconds=0.1)
    with pytest.raises(DatabaseUnavailableError) as caught:
        await database.open(timeout_seconds=0.2)
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    with pytest.raises(DatabaseUnavailableError):
        async with database.transaction():
            pass
    with pytest.raises(DatabaseUnavailableError):
        await database.dedicated()
    await database.close()


async def test_the_server_soon_misses_a_client_whose_machine_is_gone(db: Database) -> None:
    conn = await db.dedicated()
    async with conn.transaction():
        row = await (await conn.execute("SELECT current_setting('tcp_keepalives_idle')::integer")).fetchone()
    await conn.close()
    assert row is not None
    assert 0 < row[0] <= 60


async def test_a_client_that_stands_still_in_a_transaction_loses_it(db: Database) -> None:
    """Its locks pass on; where it comes back, its work is repeated like that of a lost connection."""
    attempts = []

    async def piped() -> None:
        async with db.pipeline() as conn:
            attempts.append("pipeline")
            await (await conn.execute("INSERT INTO items VALUES (1, 'x') RETURNING id")).fetchall()
            if attempts.count("pipeline") == 1:
                await (await conn.execute("SELECT set_config('transaction_timeout', '50ms', true)")).fetchall()
                await others_may_write(db, 1)

    async def plain() -> None:
        async with db.transaction() as conn:
            attempts.append("transaction")
            await conn.execute("INSERT INTO items VALUES (2, 'x')")
            if attempts.count("transaction") == 1:
                await conn.execute("SELECT set_config('idle_in_transaction_session_timeout', '50ms', true)")
                await others_may_write(db, 2)

    for work in (piped, plain):
        await db.retrying(work)
    assert attempts == ["pipeline", "pipeline", "transaction", "transaction"]
    assert await values(db) == ["x", "x"]


async def others_may_write(db: Database, number: int) -> None:
    """Wait until nobody holds a row any more."""
    async with await psycopg.AsyncConnection.connect(db.dsn, options=f"-c search_path={db.schema}") as other:
        await other.execute("INSERT INTO items VALUES (%s, 'y')", (number,))
        await other.rollback()


async def test_no_client_may_stand_still_in_a_transaction_for_ten_seconds(db: Database) -> None:
    query = "SELECT name, setting::integer FROM pg_settings WHERE name = ANY(%s)"
    names = ["idle_in_transaction_session_timeout", "transaction_timeout"]
    async with db.pipeline() as conn:
        piped = dict(await (await conn.execute(query, (names,))).fetchall())
    async with db.transaction() as plain:
        idle = dict(await (await plain.execute(query, (names,))).fetchall())
    assert 0 < idle["idle_in_transaction_session_timeout"] < 10_000
    # Between two statements of a pipeline the server waits for more, which it does not call idle.
    assert 0 < piped["transaction_timeout"] < 10_000


@pytest.mark.parametrize("state", ["53100", "53200", "58030", "25006"])
async def test_a_database_without_room_is_unavailable_and_keeps_its_connections(db: Database, state: str) -> None:
    refusing = f"DO $$ BEGIN RAISE EXCEPTION 'a secret' USING ERRCODE = '{state}'; END $$"

    async def within_a_transaction() -> None:
        async with db.transaction() as conn:
            await conn.execute(refusing)

    async def within_a_pipeline() -> None:
        async with db.pipeline() as pipeline:
            await (await pipeline.execute(refusing)).fetchall()

    for work in (within_a_transaction, within_a_pipeline):
        with pytest.raises(MeshError) as caught:
            await db.retrying(work)
        assert (caught.value.kind, caught.value.reason) == (ErrorKind.UNAVAILABLE, "NO_ROOM_LEFT")
        assert caught.value.metadata["error_id"] in caught.value.message
        assert "secret" not in caught.value.message
    async with db.transaction() as conn:
        await conn.execute("INSERT INTO items VALUES (1, 'room again')")
    assert await values(db) == ["room again"]


async def _sessions(db: Database) -> int:
    """How many sessions the server keeps for it, once those that were given up are gone."""
    async with await psycopg.AsyncConnection.connect(db.dsn, autocommit=True) as admin:
        row = await (
            await admin.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        ).fetchone()
    assert row is not None
    return int(row[0])


async def _left(db: Database, expected: int) -> None:
    async with asyncio.timeout(60):
        while await _sessions(db) != expected:  # noqa: ASYNC110 -- the server ends them in its own time
            await asyncio.sleep(0.02)


async def test_whoever_gives_up_while_connecting_leaves_no_connection(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled between the connection's opening and its first use, where nobody else knows of it."""
    before = await _sessions(db)
    execute = psycopg.AsyncConnection.execute
    held: list[psycopg.AsyncConnection[Any]] = []

    async def given_up(self: psycopg.AsyncConnection[Any], *args: Any, **more: Any) -> Any:
        held.append(self)  # the garbage collector is not to close it
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return await execute(self, *args, **more)

    async def piped() -> None:
        async with db.pipeline():
            raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr(psycopg.AsyncConnection, "execute", given_up)
        for opens in (db.dedicated, db.ping, piped):
            with pytest.raises(asyncio.CancelledError):
                await asyncio.create_task(opens())
    assert [one.closed for one in held] == [True] * 3
    await _left(db, before)


async def test_pings_at_once_keep_one_connection(db: Database) -> None:
    before = await _sessions(db)
    await asyncio.gather(*(db.ping() for _ in range(4)))
    await _left(db, before + 1)


async def test_a_ping_that_outlives_the_database_leaves_no_connection(fresh_postgres_dsn: str) -> None:
    database = Database(fresh_postgres_dsn, schema="public")
    await database.open()
    late = asyncio.create_task(database.ping())
    await asyncio.sleep(0)
    await database.close()
    await late
    await _left(database, 0)
