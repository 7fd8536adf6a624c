"""WebSocket connections whose peer takes nothing."""

import asyncio
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from services.gateway.live.protocol import GuardedSocket


class Peer(asyncio.Transport):
    """A transport that notes what is done with it."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = asyncio.Event()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return False

    def write(self, data: Any) -> None:
        pass

    def close(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted.set()


async def _app(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("nothing is asked for")


def _socket(write_seconds: float, gone: list[str], causes: list[str]) -> tuple[GuardedSocket, Peer]:
    config = uvicorn.Config(_app, log_config=None, lifespan="off", interface="asgi3")
    config.load()
    socket = GuardedSocket(
        write_seconds,
        lambda: gone.append("gone"),
        causes.append,
        config=config,
        server_state=ServerState(),
        app_state={},
    )
    peer = Peer()
    socket.connection_made(peer)
    return socket, peer


async def test_a_peer_that_takes_nothing_for_a_time_is_dropped() -> None:
    gone: list[str] = []
    causes: list[str] = []
    socket, peer = _socket(0.01, gone, causes)
    socket.pause_writing()
    await asyncio.wait_for(peer.aborted.wait(), 60)
    assert causes == ["write"]
    socket.connection_lost(None)
    assert gone == ["gone"]


async def test_a_peer_that_takes_something_again_stays() -> None:
    causes: list[str] = []
    socket, peer = _socket(0.05, [], causes)
    socket.pause_writing()
    socket.resume_writing()
    await asyncio.sleep(0.1)
    assert not peer.aborted.is_set()
    assert causes == []
    socket.connection_lost(None)
