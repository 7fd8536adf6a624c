import asyncio

import pytest

from meshkit.bus import Bus, BusMessage
from meshkit.errors import ErrorKind, MeshError


async def ignore(_message: BusMessage) -> None: ...


async def test_a_mesh_without_news_starts_and_says_so() -> None:
    bus = Bus("")
    await bus.connect()
    assert not bus.connected
    bus.notify("atelier.wake")
    handle = await bus.subscribe("a", ignore)
    await handle.unsubscribe()
    with pytest.raises(MeshError) as caught:
        await bus.publish("atelier.tasks.v1.x", b"")
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    await bus.close()


async def test_an_unreachable_server_does_not_hold_up_the_start() -> None:
    bus = Bus("nats://127.0.0.1:9")
    async with asyncio.timeout(60):  # it waits for the server without end, but not here
        await bus.connect(wait_seconds=0.1)
    assert not bus.connected
    await bus.close()
