"""The HTTP server: uvicorn on a socket of the gateway's own, started and stopped with the process's stack."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from meshkit.errors import ErrorKind, MeshError
from meshkit.logging import get_logger
from services.gateway.config import GatewaySettings
from services.gateway.connections import ConnectionGate, most_connections
from services.gateway.http_protocol import GuardedHttp, HttpLimits
from services.gateway.refusals import RefusalLog

_log = get_logger(__name__)

_BACKLOG = 2048
_OWN_ANSWER_SECONDS = 1.0
# Largest message of a client over WebSocket.
MOST_SAID_BYTES = 64 * 1024


class _HttpServer(uvicorn.Server):
    """A uvicorn that leaves signals to the process's own handling."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(app: ASGIApp, settings: GatewaySettings, stack: AsyncExitStack) -> str:
    """Serve an application until the stack is closed.

    Args:
        app: The application.
        settings: The address, and how long requests in flight may take at the end.
        stack: Takes what needs closing.

    Returns:
        The bound address, `host:port`.

    Raises:
        MeshError: `UNAVAILABLE` where the address is taken.
    """
    limits = HttpLimits(
        head_bytes=settings.max_head_bytes,
        head_seconds=settings.head_read_seconds,
        # Where the application waits for the content itself, its own answer comes first.
        content_seconds=settings.body_read_seconds + _OWN_ANSWER_SECONDS,
        write_seconds=settings.idle_connection_seconds,
    )
    gate = ConnectionGate(_bound(settings), settings.max_connections_per_address)
    listener = _listen(settings.listen)
    server = _HttpServer(
        uvicorn.Config(
            app,
            http=cast("Any", partial(GuardedHttp, limits, gate, RefusalLog())),
            ws="none",  # `GuardedHttp` hands an upgraded connection to a protocol of its own
            ws_max_size=MOST_SAID_BYTES,
            ws_ping_interval=None,
            ws_per_message_deflate=False,
            loop="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            # Its warnings are one line for each malformed request, without a bound; `RefusalLog` writes them.
            log_level="error",
            server_header=False,
            # Longer than clients and load balancers keep idle connections, so that they and not the gateway close them.
            timeout_keep_alive=cast("int", settings.idle_connection_seconds),
            timeout_graceful_shutdown=int(settings.shutdown_grace_seconds) or 1,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))

    async def end() -> None:
        server.should_exit = True
        await serving

    stack.push_async_callback(end)
    host, port = listener.getsockname()[:2]
    while not server.started and not serving.done():  # noqa: ASYNC110 -- uvicorn offers no event for it
        await asyncio.sleep(0.005)
    if serving.done():
        await serving
    return f"{host}:{port}"


def _bound(settings: GatewaySettings) -> int:
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    bound = most_connections(settings.max_connections, descriptors)
    if bound < settings.max_connections:
        _log.warning("connections_bounded_by_descriptors", connections=bound, descriptors=descriptors)
    return bound


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), int(port)))
    except OSError:
        listener.close()
        raise MeshError(ErrorKind.UNAVAILABLE, f"Cannot listen on {address}", reason="ADDRESS_IN_USE") from None
    listener.listen(_BACKLOG)
    listener.settimeout(0)  # asyncio's sockets never block
    return listener
