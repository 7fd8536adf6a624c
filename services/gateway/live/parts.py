"""What the gateway has for those who listen, put together."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from meshkit.live.document import document_of
from meshkit.live.feed import LiveFeed
from meshkit.loops import Loop
from services.gateway.endpoints import EndpointContext, Transcoder
from services.gateway.health import Health
from services.gateway.jobs.pages import JobPages
from services.gateway.live.degradation import JudgedMesh, OperatorTokens
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
        loop: Tells operators how the mesh is; not yet started.
    """

    sockets: EventSockets
    stream: LiveStream
    pages: LivePages
    loop: Loop


def build_live(
    feed: LiveFeed,
    context: EndpointContext,
    health: Health,
    jobs: JobPages,
    transcoder: Transcoder,
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
        transcoder: Serves the surface that monitoring is asked by.
        image: The contracts with their comments.
        version: Version of the mesh.
    """
    settings, operators = context.settings, OperatorTokens()
    sockets = EventSockets(
        context.guard,
        context.streams,
        settings.cors_origins,
        jobs.log,
        SessionContext(feed, settings.live_idle_seconds, context.stopping, operators),
    )
    stream = LiveStream(
        context.guard,
        context.streams,
        feed,
        operators,
        keep_alive_seconds=settings.keep_alive_seconds,
        stopping=context.stopping,
    )
    teller = MeshTeller(
        feed,
        JudgedMesh(health.judge, transcoder, operators).judge,
        lambda: sockets.clients,
        version=version,
        interval_seconds=settings.live_status_seconds,
    )
    pages = LivePages(context.guard, feed, teller, document_of(image))
    return LiveParts(sockets, stream, pages, teller.loop)
