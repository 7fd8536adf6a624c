import asyncio
from typing import Any

from grpc_health.v1 import health_pb2

from meshkit.health import REPLICA, HealthPart, HealthServicer, PartStates, is_part

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
NOBODY: Any = None


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Backend:
    """Something that works, fails or hangs as it is told."""

    def __init__(self) -> None:
        self.works = True
        self.hangs = False
        self.asked = 0

    async def ping(self) -> None:
        self.asked += 1
        while self.hangs:  # noqa: ASYNC110 -- as a server that stands still
            await asyncio.sleep(0.001)
        if not self.works:
            raise ConnectionError


async def listed(servicer: HealthServicer) -> dict[str, int]:
    answer = await servicer.List(health_pb2.HealthListRequest(), NOBODY)
    return {name: one.status for name, one in answer.statuses.items()}


async def test_parts_are_named_and_essential_ones_decide() -> None:
    clock, database, news = Clock(), Backend(), Backend()
    ailing: list[str] = []
    parts = PartStates(
        [HealthPart("postgresql", database.ping), HealthPart("nats", news.ping, essential=False)], lambda: ailing, clock
    )
    servicer = HealthServicer(parts)
    await servicer.tell("", serving=True)
    assert await listed(servicer) == {"": SERVING, "postgresql": SERVING, "nats": SERVING}
    news.works = False
    ailing.append("loops/sweep")
    clock.now += 2
    assert await listed(servicer) == {
        "": SERVING,
        "postgresql": SERVING,
        "nats": NOT_SERVING,
        "loops/sweep": NOT_SERVING,
    }
    database.works = False
    clock.now += 2
    assert (await servicer.Check(health_pb2.HealthCheckRequest(service=""), NOBODY)).status == NOT_SERVING
    assert (await servicer.Check(health_pb2.HealthCheckRequest(service="nats"), NOBODY)).status == NOT_SERVING
    database.works = news.works = True
    ailing.clear()
    clock.now += 2
    assert set((await listed(servicer)).values()) == {SERVING}


async def test_a_part_that_hangs_does_not_work_and_is_asked_once(monkeypatch: Any) -> None:
    monkeypatch.setattr("meshkit.health._CHECK_SECONDS", 0.01)
    clock, database = Clock(), Backend()
    parts = PartStates([HealthPart("postgresql", database.ping)], clock=clock)
    database.hangs = True
    for _ in range(3):
        await parts.refresh()
        assert parts.states == {"postgresql": False}
        assert not parts.serving
        clock.now += 2
    assert database.asked == 1
    database.hangs = False
    async with asyncio.timeout(60):
        while not parts.serving:
            await parts.refresh()
            clock.now += 2
    database.hangs = True
    await parts.refresh()
    await parts.close()


async def test_a_part_is_lost_after_several_failures_in_a_row() -> None:
    clock, database, ended = Clock(), Backend(), []
    parts = PartStates([HealthPart("postgresql", database.ping, every_call=True)], clock=clock)
    servicer = HealthServicer(parts, while_cut_off=lambda: ended.append(clock.now))
    await servicer.open()
    asked = health_pb2.HealthCheckRequest(service=REPLICA)

    async def ask() -> int:
        clock.now += 0.3
        return int((await servicer.Check(asked, NOBODY)).status)

    assert await ask() == SERVING
    for _ in range(2):
        clock.now += 1
        database.works = False
        assert [await ask(), await ask()] == [NOT_SERVING, NOT_SERVING], "no new call is to come"
        database.works = True
        assert await ask() == SERVING
    assert not ended, "calls that it has go on"
    clock.now += 1
    database.works = False
    for _ in range(3):
        await ask()
    assert len(ended) == 1
    clock.now += 1
    await ask()
    assert len(ended) == 2, "again, for calls that came meanwhile"
    await servicer.close()


async def test_many_who_ask_cost_one_look() -> None:
    database = Backend()
    parts = PartStates([HealthPart("postgresql", database.ping)], clock=Clock())
    await asyncio.gather(*(parts.refresh() for _ in range(20)))
    assert database.asked == 1


def test_parts_and_services_are_told_apart() -> None:
    assert [is_part(name) for name in ("nats", "workers/host.example", "atelier.tasks.v1.TasksService")] == [
        True,
        True,
        False,
    ]
