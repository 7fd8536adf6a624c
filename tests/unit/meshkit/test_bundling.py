"""When calls that begin at about the same time set out together."""

import asyncio
from collections.abc import AsyncIterator

from atelier.mesh.v1.bundle_service_pb2 import CarryRequest, CarryResponse

from meshkit.bundling import Bundler, Pairs

NEVER = 3600.0


class Server:
    """Takes bundles and answers each when it is told to."""

    def __init__(self) -> None:
        self.bundles: list[int] = []
        self.came = asyncio.Semaphore(0)
        self._answers: list[asyncio.Event] = []

    async def carry(self, request: CarryRequest, _timeout: float, _metadata: Pairs) -> AsyncIterator[CarryResponse]:
        self.bundles.append(len(request.calls))
        self.came.release()
        answer = asyncio.Event()
        self._answers.append(answer)
        await answer.wait()
        response = CarryResponse()
        for index in range(len(request.calls)):
            response.outcomes.add(index=index, response=b"fine")
        yield response

    def answer(self) -> None:
        for one in self._answers:
            one.set()


async def _turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def _calls(bundler: Bundler, count: int) -> list[asyncio.Task[bytes]]:
    async def call() -> bytes:
        bundler.enter()
        try:
            return (await bundler.send("/a/b", b"", (("authorization", "Bearer t"),), 60.0)).response
        finally:
            bundler.leave()

    return [asyncio.create_task(call()) for _ in range(count)]


async def test_as_many_as_came_lately_wait_for_nobody() -> None:
    server = Server()
    bundler = Bundler(server.carry, linger=NEVER)
    calls = _calls(bundler, 5)
    await _turns()
    assert server.bundles == [5], "those who are ready in the same moment join"
    server.answer()
    assert await asyncio.gather(*calls) == [b"fine"] * 5
    some = _calls(bundler, 3)
    await _turns()
    assert server.bundles == [5], "two are missing"
    some += _calls(bundler, 2)
    await _turns()
    assert server.bundles == [5, 5]
    server.answer()
    await asyncio.gather(*some)


async def test_calls_wait_for_those_whose_answer_is_on_its_way() -> None:
    server = Server()
    bundler = Bundler(server.carry, linger=NEVER)
    first = _calls(bundler, 4)
    await _turns()
    second = _calls(bundler, 4)
    await _turns()
    assert server.bundles == [4]
    server.answer()
    await asyncio.gather(*first)
    second += _calls(bundler, 4)
    await _turns()
    assert server.bundles == [4, 8]
    server.answer()
    await asyncio.gather(*second)


async def test_nobody_waits_longer_than_for_the_time_to_gather() -> None:
    server = Server()
    bundler = Bundler(server.carry, linger=0.001)
    first = _calls(bundler, 4)
    await _turns()
    second = _calls(bundler, 2)  # the first are still under way, and stay so
    async with asyncio.timeout(60):
        await server.came.acquire()
        await server.came.acquire()
    assert server.bundles == [4, 2]
    server.answer()
    await asyncio.gather(*first, *second)
