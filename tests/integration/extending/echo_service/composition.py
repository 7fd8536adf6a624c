"""The service put together: what `__main__` runs."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from echo.v1 import echo_service_pb2_grpc  # type: ignore[import-not-found]  # compiled by the test

from meshkit.metrics import serve_metrics
from meshkit.server import build_server

from . import ECHO
from .config import EchoSettings
from .servicer import EchoServicer


@dataclass(frozen=True, slots=True)
class EchoRuntime:
    """A running service."""

    address: str


async def start(settings: EchoSettings, stack: AsyncExitStack) -> EchoRuntime:
    """Start the service; the stack stops it."""
    servicer = EchoServicer(settings.most_times)
    server = build_server(settings, ECHO, [(echo_service_pb2_grpc.add_EchoServiceServicer_to_server, servicer)])
    await server.start()
    stack.push_async_callback(server.stop)
    page = serve_metrics(settings.metrics_port, settings.metrics_host)
    if page is not None:
        stack.callback(page.close)
    return EchoRuntime(server.address)
