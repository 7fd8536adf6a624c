"""What a round does to polls and tasks that change, or are in doubt, while it runs."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pytest
from atelier.tasks.v1.worker_service_pb2 import Lease

from meshkit.db import DatabaseUnavailableError
from meshkit.errors import ErrorKind, MeshError
from services.tasks.domain import TaskRecord
from services.tasks.postgres.rounds import CANDIDATES, PostgresRound
from services.tasks.postgres.store import PostgresTaskStore
from services.tasks.scheduling import scheduler
from services.tasks.store import Grant, HeldRound, PollEntry
from tests.integration.tasks.conftest import Mesh, StartMesh, Worker, noop, until, waits_for_lock

Body = Callable[[PostgresRound], Awaitable[None]]


async def noted(mesh: Mesh, sequence: int = 1) -> bool:
    [[last]] = await mesh.rows("SELECT max(sequence) FROM sessions")
    return bool(last == sequence)


async def test_a_round_whose_commit_is_in_doubt_loses_no_lease(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await mesh.worker()
    poll = asyncio.create_task(worker.lease())
    await until(lambda: noted(mesh))
    run_round = PostgresTaskStore.run_round

    async def committed_unheard(store: PostgresTaskStore, queue: str, body: Body) -> None:
        await run_round(store, queue, body)
        monkeypatch.undo()
        raise DatabaseUnavailableError

    monkeypatch.setattr(PostgresTaskStore, "run_round", committed_unheard)
    task = await mesh.create()
    assert [lease.job_id for lease in await poll] == [task.id]


async def test_a_poll_that_is_repeated_during_its_round_is_served_once(mesh: Mesh) -> None:
    worker = await mesh.worker()
    async with mesh.running.database.transaction() as conn:
        await conn.execute("SELECT FROM sessions FOR UPDATE")
        first = asyncio.create_task(worker.lease())
        await until(lambda: waits_for_lock(mesh))
        second = asyncio.create_task(worker.lease(repeat=True))
        await until(lambda: parked(mesh, 2))
    assert await first == []
    await asyncio.gather(mesh.create(), mesh.create())
    assert len(await second) == 1
    [[leased]] = await mesh.rows("SELECT count(*) FROM tasks WHERE status = 'EXECUTING'")
    assert leased == 1


async def test_a_task_that_moved_after_it_was_looked_at_is_not_leased(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    await mesh.create()
    worker = await mesh.worker()
    grant = PostgresRound.grant

    async def too_late(work: PostgresRound, grants: Sequence[Grant], virtual_time: float) -> list[TaskRecord]:
        await mesh.execute("UPDATE tasks SET queue_name = 'fal', provider_type = 'FAL', lane = 'NOOP/FAL'")
        return await grant(work, grants, virtual_time)

    monkeypatch.setattr(PostgresRound, "grant", too_late)
    assert await worker.lease(wait=0.2) == []


async def test_a_task_that_someone_holds_keeps_the_next_one_waiting_only_shortly(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "POLL_SECONDS", 3600.0)  # no round begins by itself
    await mesh.create()
    worker = await mesh.worker()
    async with mesh.running.database.transaction() as conn:
        await conn.execute("SELECT FROM tasks FOR UPDATE")
        await mesh.create()
        poll = asyncio.create_task(worker.lease())
        await until(lambda: noted(mesh))
    assert len(await poll) == 1


async def test_a_task_asks_for_no_more_of_the_idle_workers_than_take_it(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls = await idle(mesh, 12)
    hold, asked = PostgresRound.hold, []

    async def noting(work: PostgresRound, entries: Sequence[PollEntry], *others: Any, **more: Any) -> HeldRound:
        asked.append(len(entries))
        return await hold(work, entries, *others, **more)

    monkeypatch.setattr(PostgresRound, "hold", noting)
    task = await mesh.create()
    done, waiting = await asyncio.wait(polls, return_when=asyncio.FIRST_COMPLETED)
    assert [lease.job_id for poll in done for lease in poll.result()] == [task.id]
    assert asked
    assert max(asked) <= 1
    await end(waiting)


async def test_workers_that_were_cordoned_while_they_waited_keep_no_task_from_others(mesh: Mesh) -> None:
    *others, third, fourth = await idle(mesh, 4)
    for name in ("w0", "w1", "w2"):
        await mesh.running.scaling.cordon(name)
    task = await mesh.create()
    assert [lease.job_id for lease in await fourth] == [task.id]
    # Those before it are known to take nothing, and so was this one.
    await mesh.running.scaling.uncordon("w2")
    task = await mesh.create()
    assert [lease.job_id for lease in await third] == [task.id]
    assert not any(poll.done() for poll in others)
    await end(others)


async def test_a_poll_that_was_not_noted_is_asked_again_after_a_stop(start_mesh: StartMesh) -> None:
    stopping, staying = await start_mesh(), await start_mesh()
    workers = [await stopping.worker(name=f"w/{number}") for number in range(2)]
    async with staying.running.database.transaction() as conn:
        await conn.execute("SELECT FROM sessions FOR UPDATE")
        polls = [asyncio.create_task(worker.lease(wait=20)) for worker in workers]
        await until(lambda: parked(stopping, 2))
        await stopping.running.maintenance._sessions._scheduler.close()
        answers = await asyncio.gather(*polls, return_exceptions=True)
    for worker, answer in zip(workers, answers, strict=True):
        assert isinstance(answer, MeshError)
        assert answer.kind is ErrorKind.UNAVAILABLE
        again = Worker(staying.workers(), worker.session, worker.sequence)
        await again.lease(wait=0, repeat=True)


async def test_rounds_read_by_index_whatever_the_table_was_when_they_were_planned(mesh: Mesh) -> None:
    await mesh.create()
    await mesh.execute("ANALYZE")
    plans: list[str] = []

    async def explain(work: PostgresRound) -> None:
        arguments = (["acme"], [16], ["NOOP/LOCAL"], "inference")
        cursor = await work._conn.execute(f"EXPLAIN (FORMAT JSON) {CANDIDATES}", arguments)
        plans.append(json.dumps(await cursor.fetchall()))

    await PostgresTaskStore(mesh.running.database).run_round("inference", explain)
    assert "tasks_waiting" in plans[0]
    assert "Seq Scan" not in plans[0]


async def idle(mesh: Mesh, count: int) -> list[asyncio.Task[list[Lease]]]:
    """Polls of so many workers, `w0` and on, which wait in this order."""
    polls = []
    for number in range(count):
        worker = await mesh.worker(name=f"w{number}")
        polls.append(asyncio.create_task(worker.lease(wait=30)))
        await until(partial(noted_by, mesh, number + 1))
    return polls


async def end(polls: Iterable[asyncio.Task[list[Lease]]]) -> None:
    for poll in polls:
        poll.cancel()
    await asyncio.gather(*polls, return_exceptions=True)


async def noted_by(mesh: Mesh, count: int) -> bool:
    [[found]] = await mesh.rows("SELECT count(*) FROM sessions WHERE sequence = 1")
    return bool(found == count)


async def parked(mesh: Mesh, count: int) -> bool:
    scheduler = mesh.running.maintenance._sessions._scheduler
    return len(scheduler._polls.get("inference", ())) == count


async def test_a_task_starts_after_it_was_made_although_its_round_began_before(mesh: Mesh) -> None:
    await mesh.execute("INSERT INTO queues VALUES ('inference', 0)")
    worker = await mesh.worker()
    await mesh.create()
    async with mesh.running.database.transaction() as conn:
        await conn.execute("SELECT FROM queues FOR UPDATE")
        poll = asyncio.create_task(worker.lease())
        await until(lambda: waits_for_lock(mesh))
        urgent = await mesh.create(noop(priority=9))
    assert [lease.job_id for lease in await poll] == [urgent.id]
    [times] = await mesh.rows("SELECT created_at, started_at, leased_at FROM tasks WHERE status = 'EXECUTING'")
    assert times[0] < times[1] == times[2]
