"""What the gateway has for those who listen, put together."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from meshkit.live import registry
from meshkit.live.feed import LiveFeed
from meshkit.loops import Loops
from services.gateway.endpoints import EndpointContext
from services.gateway.health import Health
from services.gateway.jobs.pages import JobPages
from services.gateway.live.session import SessionContext
from services.gateway.live.sockets import EventSockets
from services.gateway.live.sse import LiveStream
from services.gateway.live.system import LivePages, MeshTeller


@dataclass(frozen=True, slots=True)
class LiveParts:
    """What serves those who listen.

    Attributes:
        sockets: WebSocket connections.
        stream: Server-sent events.
        pages: What is told of both.
        loops: Background work, not yet started.
    """

    sockets: EventSockets
    stream: LiveStream
    pages: LivePages
    loops: Loops


def build_live(
    feed: LiveFeed,
    context: EndpointContext,
    health: Health,
    jobs: JobPages,
    *,
    image: FileDescriptorSet,
    version: str,
) -> LiveParts:
    """Return what serves those who listen.

    Args:
        feed: Has the messages.
        context: What every endpoint works with.
        health: Says how the mesh is.
        jobs: Has the logs of jobs.
        image: The contracts with their comments.
        version: Version of the mesh.
    """
    settings = context.settings
    sockets = EventSockets(
        context.guard,
        context.streams,
        settings.cors_origins,
        jobs.log,
        SessionContext(feed, settings.live_idle_seconds, context.stopping),
    )
    stream = LiveStream(
        context.guard,
        context.streams,
        feed,
        keep_alive_seconds=settings.keep_alive_seconds,
        stopping=context.stopping,
    )
    teller = MeshTeller(
        feed,
        health.judge,
        lambda: sockets.clients,
        version=version,
        interval_seconds=settings.live_status_seconds,
    )
    pages = LivePages(context.guard, feed, teller, registry.document(image))
    return LiveParts(sockets, stream, pages, Loops(teller.loop))
