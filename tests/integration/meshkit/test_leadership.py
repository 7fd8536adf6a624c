import pytest

from meshkit.db import Database
from meshkit.leadership import FENCE, Leadership
from meshkit.pipeline import Pipeline


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def expire(db: Database) -> None:
    async with db.transaction() as conn:
        await conn.execute("UPDATE leaders SET expires_at = now() - interval '1 second'")


async def fenced(conn: Pipeline, leadership: Leadership) -> bool:
    async with conn.transaction():
        rows = await (await conn.execute(f"SELECT {FENCE}", leadership.fence)).fetchall()
    return bool(rows[0][0])


async def test_one_leads_until_its_claim_runs_out(db: Database) -> None:
    conn = await db.dedicated()
    clock = Clock()
    one, two = Leadership("work", clock=clock), Leadership("work", clock=clock)
    other = Leadership("other work", clock=clock)
    assert await one.hold(conn)
    assert not await two.hold(conn)
    assert await other.hold(conn), "works are apart"
    await expire(db)
    clock.now += 1.5
    assert await two.hold(conn)
    assert await fenced(conn, two)
    assert one.valid, "it may not know yet"
    assert not await fenced(conn, one), "but writes nothing any more"
    clock.now += 4
    assert not one.valid, "a process that stood still knows by its own clock"
    assert not await one.hold(conn)
    await conn.close()


async def test_a_leader_asks_the_database_once_in_half_of_its_time(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn = await db.dedicated()
    clock = Clock()
    leader, standby = Leadership("work", clock=clock), Leadership("work", clock=clock)
    assert await leader.hold(conn)
    assert not await standby.hold(conn)
    with monkeypatch.context() as patched:
        patched.setattr(conn, "transaction", None)
        clock.now += 0.9
        assert await leader.hold(conn)
        assert not await standby.hold(conn), "nor does one that stands by, however often it is woken"
    await expire(db)
    clock.now += 2
    assert await leader.hold(conn), "nobody else asked meanwhile"
    clock.now += 4.9
    assert leader.valid
    await conn.close()


async def test_work_that_is_given_back_is_free_at_once(db: Database) -> None:
    conn = await db.dedicated()
    one, two = Leadership("work"), Leadership("work")
    assert await one.hold(conn)
    await two.give_back(conn)
    assert not await Leadership("work").hold(conn), "only its holder gives it back"
    await one.give_back(conn)
    assert await two.hold(conn)
    await conn.close()
