"""The marker put together: what `__main__` runs and what the tests start."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass

from meshkit.auth import ServiceTokens
from meshkit.channel import MeshChannel
from meshkit.health import PartStates
from meshkit.loops import Loop, Loops, cancel
from meshkit.metrics import serve_metrics
from meshkit.server import build_server
from meshkit.topology import MARKER
from services.monitoring.marker.config import MarkerSettings
from services.monitoring.marker.cordons import SchedulersCordons
from services.monitoring.marker.kubernetes import PodApi
from services.monitoring.marker.service import Marker


@dataclass(frozen=True, slots=True)
class MarkerRuntime:
    """A running marker."""

    address: str


async def start(settings: MarkerSettings, stack: AsyncExitStack) -> MarkerRuntime:
    """Start the marker; the stack stops it.

    Args:
        settings: Its settings.
        stack: Closed in reverse order at the end.
    """
    tokens = ServiceTokens.from_settings(settings, MARKER.role, MARKER.scopes)
    channel = MeshChannel.from_settings(settings, settings.tasks_address, tokens.token)
    stack.push_async_callback(channel.close)
    pods = PodApi(
        settings.kubernetes_url,
        settings.namespace,
        settings.pod_selector,
        token=settings.kubernetes_token,
        authority=settings.kubernetes_ca,
    )
    stack.push_async_callback(pods.close)
    marker = Marker(pods, SchedulersCordons(channel), unmark_seconds=settings.unmark_seconds)
    following = asyncio.create_task(marker.follow(), name="marker-pods")
    stack.push_async_callback(cancel, [following])
    loops = Loops(Loop("marker-pods", marker.run_once, settings.mark_seconds))
    await stack.enter_async_context(loops)
    # It serves nothing but the health of the process.
    server = build_server(settings, MARKER, [], PartStates([], lambda: [f"loops/{name}" for name in loops.ailing]))
    await server.start()
    stack.push_async_callback(server.stop)
    page = serve_metrics(settings.metrics_port, settings.metrics_host)
    if page is not None:
        stack.callback(page.close)
    return MarkerRuntime(server.address)
