import asyncio
import uuid
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg_errors
from psycopg import sql

from meshkit.db import Database, DatabaseUnavailableError
from meshkit.pipeline import LocalSettings, Pipeline


@pytest.fixture
async def piped(db: Database) -> Database:
    async with db.transaction() as conn:
        await conn.execute("CREATE TABLE piped (n integer PRIMARY KEY, t text)")
    return db


async def numbers(db: Database) -> list[int]:
    async with db.connection() as conn:
        cursor = await conn.execute("SELECT n FROM piped ORDER BY n")
        return [row[0] for row in await cursor.fetchall()]


async def backend(conn: Pipeline) -> int:
    row = await (await conn.execute("SELECT pg_backend_pid()")).fetchone()
    assert row is not None
    return int(row[0])


async def insert(db: Database, *values: int) -> None:
    async with db.pipeline() as conn:
        for value in values:
            await conn.execute("INSERT INTO piped VALUES (%s)", (value,))


async def test_a_transaction_is_committed_whole_or_not_at_all(piped: Database) -> None:
    await insert(piped, 1, 2)
    with pytest.raises(pg_errors.UniqueViolation, match="piped_pkey"):
        await insert(piped, 3, 1, 4)
    assert await numbers(piped) == [1, 2]


async def test_a_statement_sees_what_those_before_it_wrote(piped: Database) -> None:
    async with piped.pipeline() as conn:
        await conn.execute("INSERT INTO piped VALUES (1), (2)")
        found = await conn.execute("SELECT count(*) FROM piped")
        await conn.execute("INSERT INTO piped VALUES (3)")
        changed = await conn.execute("UPDATE piped SET t = 'x' WHERE n > %s", (1,))
        assert await found.fetchone() == (2,)
        assert await changed.count() == 2
        assert await found.fetchall() == [(2,)]
        none = await conn.execute("SELECT n FROM piped WHERE n > 100")
        assert await none.fetchone() is None


async def test_an_exception_undoes_the_block_and_keeps_the_connection(piped: Database) -> None:
    seen = []
    for number in range(3):
        with pytest.raises(RuntimeError, match="changed my mind"):  # noqa: PT012 -- the block is what is tested
            async with piped.pipeline() as conn:
                seen.append(await backend(conn))
                await conn.execute("INSERT INTO piped VALUES (%s)", (number,))
                raise RuntimeError("changed my mind")
    assert len(set(seen)) == 1
    assert await numbers(piped) == []


async def test_a_failure_surfaces_at_the_next_fetch_and_cannot_be_committed(piped: Database) -> None:
    async def swallow() -> None:
        async with piped.pipeline() as conn:
            await conn.execute("INSERT INTO piped VALUES (1)")
            await conn.execute("SELECT 1 / (n - 1) FROM piped")
            later = await conn.execute("SELECT 7")
            with pytest.raises(pg_errors.DivisionByZero):
                await later.fetchall()
            with pytest.raises(pg_errors.DivisionByZero):
                await (await conn.execute("SELECT 8")).fetchall()

    with pytest.raises(pg_errors.DivisionByZero):
        await swallow()
    assert await numbers(piped) == []


async def test_what_was_passed_over_after_a_failure_is_prepared_the_next_time(piped: Database) -> None:
    async def work(divisor: int) -> Any:
        async with piped.pipeline() as conn:
            await conn.execute("SELECT 1 / %s", (divisor,))
            await conn.execute("INSERT INTO piped VALUES (%s, %s)", (divisor, "new here"))
            return await backend(conn)

    with pytest.raises(pg_errors.DivisionByZero):
        await work(0)
    assert await work(1) == await work(2)
    assert await numbers(piped) == [1, 2]


async def test_a_statement_that_is_no_sql_harms_nobody_else(piped: Database) -> None:
    for _ in range(2):
        with pytest.raises(pg_errors.SyntaxError):
            async with piped.pipeline() as conn:
                await conn.execute("SELEC 1")
    await insert(piped, 1)
    assert await numbers(piped) == [1]


@pytest.mark.parametrize("waits_for_the_server", [True, False])
async def test_a_cancelled_block_leaves_neither_lock_nor_row(piped: Database, *, waits_for_the_server: bool) -> None:
    await insert(piped, 1)
    held = asyncio.Event()

    async def hold() -> None:
        async with piped.pipeline() as conn:
            await (await conn.execute("UPDATE piped SET t = 'mine' WHERE n = 1 RETURNING n")).fetchall()
            held.set()
            if waits_for_the_server:
                await (await conn.execute("SELECT pg_sleep(1)")).fetchall()
            else:
                await asyncio.sleep(60)

    task = asyncio.create_task(hold())
    await held.wait()
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(60), piped.pipeline() as conn:
        row = await (await conn.execute("SELECT t FROM piped WHERE n = 1 FOR UPDATE")).fetchone()
    assert row == (None,)


async def test_a_killed_backend_is_told_of_and_replaced(piped: Database) -> None:
    attempts = []

    async def work() -> None:
        async with piped.pipeline() as conn:
            pid = await backend(conn)
            attempts.append(pid)
            if len(attempts) == 1:
                async with await psycopg.AsyncConnection.connect(piped.dsn, autocommit=True) as other:
                    await other.execute("SELECT pg_terminate_backend(%s)", (pid,))
            await conn.execute("INSERT INTO piped VALUES (%s)", (len(attempts),))

    with pytest.raises(DatabaseUnavailableError):
        await work()
    await work()
    assert len(set(attempts)) == 2
    assert await numbers(piped) == [2]


async def test_a_backend_killed_at_rest_costs_one_repetition(piped: Database) -> None:
    async with piped.pipeline() as conn:
        pid = await backend(conn)
    async with await psycopg.AsyncConnection.connect(piped.dsn, autocommit=True) as other:
        await other.execute("SELECT pg_terminate_backend(%s)", (pid,))
    await piped.retrying(lambda: insert(piped, 1))
    assert await numbers(piped) == [1]


async def test_neither_large_values_nor_large_answers_block_the_connection(db: Database) -> None:
    async with asyncio.timeout(60), db.pipeline() as conn:
        answers = [
            await conn.execute("SELECT %s::text || repeat('x', 1000000)", ("y" * 1_000_000,), binary=True)
            for _ in range(20)
        ]
        for answer in answers:
            ((text,),) = await answer.fetchall()
            assert (len(text), text[0], text[-1]) == (2_000_000, "y", "x")


async def test_values_pass_as_with_a_cursor(db: Database) -> None:
    moment = datetime(2026, 11, 23, 1, 2, 3, 456789, UTC)
    ident = uuid.uuid4()
    query = (
        "SELECT %(n)s + 1, %(n)s * 2, %(text)s::text, %(none)s::uuid, %(ident)s, %(moment)s, %(raw)s, %(flag)s, "
        "%(ids)b::uuid[], %(texts)b::text[], 10 %% 4, '%%s'"
    )
    for number in (1, 70_000, 2**40):
        values: dict[str, Any] = {
            "n": number,
            "text": "Ä 'quoted' %s $1",
            "none": None,
            "ident": ident,
            "moment": moment,
            "raw": b"\x00\xff",
            "flag": True,
            "ids": [ident, None],
            "texts": [],
        }
        for binary in (True, False):
            async with db.pipeline() as conn, db.connection() as plain:
                ours = await (await conn.execute(query, values, binary=binary)).fetchone()
                theirs = await (await plain.execute(query, values, binary=binary)).fetchone()
                assert ours == theirs
                assert ours is not None
                assert ours[:3] == (number + 1, number * 2, values["text"])


async def test_values_must_fit_the_placeholders(piped: Database) -> None:
    async def send(*values: object) -> None:
        async with piped.pipeline() as conn:
            await conn.execute("INSERT INTO piped VALUES (1)")
            await conn.execute("SELECT %s, %s", values)

    for values in ((1,), (1, 2, 3), (1, object())):
        with pytest.raises(psycopg.ProgrammingError):
            await send(*values)
    assert await numbers(piped) == []


async def test_a_table_that_changed_under_prepared_statements_costs_one_repetition(piped: Database) -> None:
    attempts = []

    async def read() -> list[Any]:
        attempts.append(1)
        async with piped.pipeline() as conn:
            return await (await conn.execute("SELECT * FROM piped")).fetchall()

    await insert(piped, 1)
    await asyncio.gather(*(read() for _ in range(3)))  # each on a connection of its own
    async with piped.transaction() as conn:
        await conn.execute("ALTER TABLE piped ADD COLUMN more integer DEFAULT 5")
    with pytest.raises(pg_errors.FeatureNotSupported):
        await read()
    assert await read() == [(1, None, 5)]
    async with piped.transaction() as conn:
        await conn.execute("ALTER TABLE piped DROP COLUMN more")
    attempts.clear()
    assert await piped.retrying(read) == [(1, None)]
    assert len(attempts) == 2


async def test_statements_that_are_used_least_are_forgotten(piped: Database) -> None:
    async with piped.pipeline() as conn:
        for number in range(250):
            answer = await conn.execute(f"SELECT {number} + %s", (1,))
            await conn.execute("SELECT 'hot'")
            if number % 50 == 0:
                assert await answer.fetchone() == (number + 1,)
        again = await conn.execute("SELECT 0 + %s", (1,))
        prepared = await conn.execute("SELECT statement FROM pg_prepared_statements")
        assert await again.fetchone() == (1,)
        kept = [row[0] for row in await prepared.fetchall()]
    assert "SELECT 'hot'" in kept
    assert 190 < len(kept) <= 200
    await insert(piped, 1)
    assert await numbers(piped) == [1]


async def test_without_durability_only_this_commit_does_not_wait(piped: Database) -> None:
    settings = LocalSettings({"synchronous_commit": "local"})
    for durable, expected in ((False, "off"), (True, "local")):
        async with piped.pipeline(durable=durable, settings=settings) as conn:
            row = await (await conn.execute("SELECT current_setting('synchronous_commit')")).fetchone()
        assert row == (expected,)


SEQSCAN = "SELECT current_setting('enable_seqscan'), current_setting('search_path')"


async def test_settings_hold_for_their_transaction_alone(fresh_postgres_dsn: str) -> None:
    database = Database(fresh_postgres_dsn, schema="public", max_size=2)
    await database.open()
    hot = LocalSettings({"enable_seqscan": "off", "enable_hashjoin": "off"})
    backends = set()
    for settings, expected in ((hot, "off"), (None, "on"), (hot, "off")):
        async with database.pipeline(settings=settings) as conn, database.connection() as plain:
            backends.add(await backend(conn))
            assert await (await conn.execute(SEQSCAN)).fetchone() == (expected, "public")
            assert await (await plain.execute(SEQSCAN)).fetchone() == ("on", "public")
    with pytest.raises(pg_errors.DivisionByZero):
        async with database.pipeline(settings=hot) as conn:
            await conn.execute("SELECT 1 / 0")
    async with database.pipeline() as conn:
        backends.add(await backend(conn))
        assert await (await conn.execute(SEQSCAN)).fetchone() == ("on", "public")
    assert len(backends) == 1
    await database.close()


async def test_a_statement_may_run_with_the_servers_settings_among_others(fresh_postgres_dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(fresh_postgres_dsn, autocommit=True) as admin:
        name = fresh_postgres_dsn.rpartition("/")[2]
        await admin.execute(sql.SQL("ALTER DATABASE {} SET enable_mergejoin TO off").format(sql.Identifier(name)))
    database = Database(fresh_postgres_dsn, schema="public")
    hot = LocalSettings({"enable_seqscan": "off", "enable_mergejoin": "on"})
    query = "SELECT current_setting('enable_seqscan'), current_setting('enable_mergejoin')"
    async with database.pipeline(settings=hot) as conn:
        seen = [await conn.execute(query)]
        async with conn.server_settings():
            seen.append(await conn.execute(query))
        seen.append(await conn.execute(query))
        assert [await rows.fetchone() for rows in seen] == [("off", "on"), ("on", "off"), ("off", "on")]
    async with database.pipeline() as conn, conn.server_settings():
        assert await (await conn.execute(query)).fetchone() == ("on", "off")
    await database.close()


async def test_a_plan_made_under_settings_is_not_used_without_them(piped: Database) -> None:
    hot = LocalSettings({"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"})
    prepared = "SELECT count(*) FROM pg_prepared_statements WHERE statement = %s"
    query = "SELECT t FROM piped WHERE n = %s"
    for settings in (hot, None, hot, None):
        async with piped.pipeline(settings=settings) as conn:
            await conn.execute(query, (1,))
    async with piped.pipeline() as conn:
        assert await (await conn.execute(prepared, ("SELECT t FROM piped WHERE n = $1",))).fetchone() == (2,)


async def test_connections_are_bounded_and_waited_for(fresh_postgres_dsn: str) -> None:
    patient = Database(fresh_postgres_dsn, schema="public", max_size=4)
    database = Database(fresh_postgres_dsn, schema="public", max_size=4, acquire_timeout_seconds=3)
    await database.open()
    used: list[int] = []
    free = asyncio.Event()
    free.set()

    async def use(of: Database = database) -> None:
        async with of.pipeline() as conn:
            used.append(await backend(conn))
            await free.wait()

    await asyncio.gather(*(use(patient) for _ in range(20)))
    assert len(used) == 20
    assert len(set(used)) == 2
    free.clear()
    holders = [asyncio.create_task(use()) for _ in range(2)]
    async with asyncio.timeout(60):
        while len(used) < 22:  # noqa: ASYNC110 -- what is waited for has no event
            await asyncio.sleep(0.01)
    with pytest.raises(DatabaseUnavailableError):
        await use()
    free.set()
    await asyncio.gather(*holders)
    await use()
    await patient.close()
    await database.close()


async def test_a_server_that_is_not_there_is_said_to_be_unavailable() -> None:
    database = Database("postgresql://a:b@127.0.0.1:9/x", schema="s", acquire_timeout_seconds=0.2)
    with pytest.raises(DatabaseUnavailableError):
        await insert(database, 1)
    await database.close()
