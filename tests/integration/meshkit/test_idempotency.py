import asyncio

import pytest

from meshkit import idempotency
from meshkit.db import Database
from meshkit.errors import ErrorKind, MeshError
from meshkit.idempotency import IdempotencyKey

HASH, OTHER = b"h" * 32, b"o" * 32


def item(key: str, request: bytes = HASH) -> IdempotencyKey:
    return IdempotencyKey("CreateItem", key, request)


async def create(db: Database, key: str, request: bytes = HASH, response: bytes = b"made") -> bytes:
    """What an owner does: claim, create, store, all in one transaction."""
    async with db.transaction() as conn:
        replay = await idempotency.claim(conn, "acme", item(key, request))
        if replay is not None:
            return replay
        await conn.execute("INSERT INTO items SELECT count(*), %s FROM items", (key,))
        await idempotency.store(conn, "acme", item(key, request), response)
        return response


async def count(db: Database) -> int:
    async with db.connection() as conn:
        row = await (await conn.execute("SELECT count(*) FROM items")).fetchone()
        return int(row[0]) if row else -1


async def lock_waits(db: Database) -> int:
    # A transaction of its own each time: the view is frozen within one.
    async with db.connection() as conn:
        cursor = await conn.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        row = await cursor.fetchone()
        return int(row[0]) if row else -1


async def test_the_first_answer_is_replayed(db: Database) -> None:
    assert await create(db, "k", response=b"first") == b"first"
    assert await create(db, "k", response=b"second") == b"first"
    assert await count(db) == 1


async def test_another_request_under_the_key_is_a_conflict(db: Database) -> None:
    await create(db, "k")
    with pytest.raises(MeshError) as caught:
        await create(db, "k", OTHER)
    assert (caught.value.kind, caught.value.reason) == (ErrorKind.CONFLICT, "IDEMPOTENCY_KEY_REUSED")


async def test_an_answer_is_found_once_it_is_committed_and_only_for_its_request(db: Database) -> None:
    async with db.transaction() as conn, db.connection() as other:
        assert await idempotency.claim(conn, "acme", item("k")) is None
        assert await idempotency.find(other, "acme", item("k")) is None, "it waits for nobody"
        await idempotency.store(conn, "acme", item("k"), b"made")
    async with db.connection() as conn:
        assert await idempotency.find(conn, "acme", item("k")) == b"made"
        assert await idempotency.find(conn, "globex", item("k")) is None
        with pytest.raises(MeshError) as caught:
            await idempotency.find(conn, "acme", item("k", OTHER))
    assert (caught.value.kind, caught.value.reason) == (ErrorKind.CONFLICT, "IDEMPOTENCY_KEY_REUSED")


async def test_keys_of_tenants_and_methods_are_apart(db: Database) -> None:
    async with db.transaction() as conn:
        for tenant, method in (("a", "m"), ("b", "m"), ("a", "n")):
            assert await idempotency.claim(conn, tenant, IdempotencyKey(method, "k", HASH)) is None
            await idempotency.store(conn, tenant, IdempotencyKey(method, "k", HASH), f"{tenant}{method}".encode())
        assert await idempotency.claim(conn, "b", IdempotencyKey("m", "k", HASH)) == b"bm"


async def test_duplicates_at_the_same_moment_create_once(db: Database) -> None:
    answers = await asyncio.gather(*(create(db, "k", response=str(n).encode()) for n in range(6)))
    assert len(set(answers)) == 1
    assert await count(db) == 1


async def test_a_duplicate_waits_and_gets_its_turn_when_the_first_fails(db: Database) -> None:
    claimed, fail = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with db.transaction() as conn:
            await idempotency.claim(conn, "acme", item("k"))
            claimed.set()
            await fail.wait()
            raise RuntimeError("not stored")

    failing = asyncio.create_task(first())
    await claimed.wait()
    second = asyncio.create_task(create(db, "k", response=b"second"))
    async with asyncio.timeout(60):
        while not await lock_waits(db):  # noqa: ASYNC110 -- what is waited for has no event
            await asyncio.sleep(0.01)
    assert not second.done()
    fail.set()
    with pytest.raises(RuntimeError):
        await failing
    assert await second == b"second"


async def test_keys_are_forgotten_after_two_days(db: Database) -> None:
    await create(db, "old")
    await create(db, "new")
    async with db.transaction() as conn:
        await conn.execute("UPDATE idempotency_keys SET created_at = now() - interval '49 hours' WHERE key = 'old'")
    assert await idempotency.purge(db) == 1
    assert await create(db, "old", OTHER, b"anew") == b"anew"
    assert await create(db, "new", response=b"x") == b"made"
