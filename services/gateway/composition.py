"""The service put together: what `__main__` runs and what the tests start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_health.v1 import health_pb2, health_pb2_grpc
from starlette.types import ASGIApp

from meshkit import topology
from meshkit.auth import TokenVerifier
from meshkit.bus import Bus
from meshkit.channel import MeshChannel
from meshkit.errors import ErrorKind, MeshError
from meshkit.health import HealthPart, PartStates, is_part
from meshkit.images.checks import ImageChecks
from meshkit.live.feed import LiveFeed
from meshkit.logging import get_logger
from meshkit.loops import Loops
from meshkit.media_urls import MediaSigner
from meshkit.metrics import serve_metrics
from meshkit.objects import ObjectStore, open_configured
from meshkit.quotas import CALLS, STREAMS, TenantRates, TenantShare
from meshkit.stored_bytes import StoredBytes
from meshkit.supervision import supervise
from meshkit.transcoding.openapi import build_document
from meshkit.transcoding.routes import Route, RouteTable, compile_services
from services.gateway import lora_openapi, openapi, server
from services.gateway.app import GatewayParts, create_app
from services.gateway.auth import Authenticator
from services.gateway.bodies import BodyBudget
from services.gateway.config import GatewaySettings
from services.gateway.contracts import ContractService, load_services, read_image
from services.gateway.docs import Docs
from services.gateway.endpoints import EndpointContext, Transcoder
from services.gateway.health import Health, Probe, ServiceHealth
from services.gateway.jobs import jobs_openapi
from services.gateway.jobs.pages import JobPages
from services.gateway.live import live_openapi
from services.gateway.live.parts import build_live
from services.gateway.lora_uploads import SERVICE, UPLOADS, LoraUploads, UploadMethod
from services.gateway.staging import UploadStager
from services.gateway.stored_images import StoredImages

_log = get_logger(__name__)

SERVING = health_pb2.HealthCheckResponse.SERVING


@dataclass(frozen=True, slots=True)
class GatewayRuntime:
    """A running gateway.

    Attributes:
        address: The bound address, `host:port`.
        stopping: Set when the gateway begins to end: open event streams close then, other requests are finished.
    """

    address: str
    stopping: asyncio.Event


async def start(settings: GatewaySettings, stack: AsyncExitStack) -> GatewayRuntime:
    """Start the service; the stack stops it.

    Args:
        settings: Its settings.
        stack: Closed in reverse order at the end.

    Raises:
        ContractError: The contracts cannot be served as they stand.
        ValueError: The settings name no key to verify tokens with.
    """
    stopping = asyncio.Event()
    bus, loops = _bus(settings), Loops()
    feed = _feed(settings, bus)
    stack.push_async_callback(feed.close)
    app = build_app(settings, stack, stopping, feed, loops)
    await feed.start()
    await supervise(stack, loops, bus, topology.GATEWAY.role)
    metrics = serve_metrics(settings.metrics_port, settings.metrics_host)
    if metrics is not None:
        stack.callback(metrics.close)
    address = await server.serve(app, settings, stack)
    # Closed first of all: a server that stops waits for its requests, and streams end by this alone.
    stack.callback(stopping.set)
    return GatewayRuntime(address, stopping)


def build_app(
    settings: GatewaySettings,
    stack: AsyncExitStack,
    stopping: asyncio.Event,
    feed: LiveFeed | None = None,
    loops: Loops | None = None,
) -> ASGIApp:
    """Build the application and everything it stands on; what needs closing goes on the stack.

    Args:
        settings: Its settings.
        stack: Closed in reverse order at the end.
        stopping: Set when the process begins to end.
        feed: Live events, started and closed by the caller; None for events that are never started.
        loops: Takes the background work, which the caller runs.

    Raises:
        ContractError: The contracts cannot be served as they stand.
        ValueError: The settings name no key to verify tokens with.
    """
    image = read_image()
    loaded = load_services(image, settings.packages())
    addresses = {
        name: settings.address_of(name) for one in loaded if topology.is_served(name := one.descriptor.full_name)
    }
    services = [one for one in loaded if addresses.get(one.descriptor.full_name)]
    names = [one.descriptor.full_name for one in services]
    probed = settings.probed()
    # One channel for each address: the gRPC services of one process share it.
    asked = dict.fromkeys((*(addresses[name] for name in names), *(address for address, _ in probed.values())))
    channels = {address: _channel(settings, stack, address, names) for address in asked}
    table = RouteTable(compile_services(one.descriptor for one in services))
    stubs = {one.descriptor.full_name: channels[addresses[one.descriptor.full_name]].stub(one.stub) for one in services}

    def call_of(route: Route) -> Callable[..., Any]:
        call: Callable[..., Any] = getattr(stubs[route.rpc.containing_service.full_name], route.rpc.name)
        return call

    rates = TenantRates(settings.tenant_requests_per_second, "tenant_requests_per_second", time.monotonic)
    guard = Authenticator(TokenVerifier.from_settings(settings), rates)
    objects = open_configured(settings, stack)
    checks = ImageChecks.from_settings(settings)
    stack.push_async_callback(checks.close)
    context = EndpointContext(
        settings=settings,
        guard=guard,
        uploads=UploadStager(objects, checks) if objects is not None else None,
        bodies=BodyBudget(
            settings.max_bodies_bytes,
            wait_seconds=settings.body_wait_seconds,
            read_seconds=settings.body_read_seconds,
            max_body_bytes=settings.max_body_bytes,
        ),
        calls=TenantShare(CALLS, settings.tenant_max_calls, "tenant_max_calls"),
        streams=TenantShare(STREAMS, settings.tenant_max_streams, "tenant_max_streams"),
        stopping=stopping,
    )
    stored = loras = None
    if objects is not None:
        loras = _lora_uploads(settings, services, stubs, context, objects)
        counted = StoredBytes(objects, settings.tenant_storage_bytes)
        stack.push_async_callback(counted.close)
        stored = StoredImages(objects, guard, MediaSigner.from_settings(settings), checks, settings, stored=counted)
    release = version("atelier")
    probes = {role: _probe(channels[address], part) for role, (address, part) in probed.items()}
    transcoder = Transcoder(table, call_of, context)
    health = Health(probes, _parts(objects, stack), release, [one.role for one in topology.OPTIONAL])
    jobs = JobPages(guard, transcoder)
    live = build_live(
        feed or _feed(settings, _bus(settings)), context, health, jobs, transcoder, image=image, version=release
    )
    if loops is not None:
        loops.add(live.loop)
    parts = GatewayParts(
        transcoder=transcoder,
        health=health,
        images=stored,
        loras=loras,
        live=live,
        jobs=jobs,
        openapi=document(table, image, version=release),
        docs=Docs(),
    )
    return create_app(parts, settings)


def _bus(settings: GatewaySettings) -> Bus:
    return Bus(settings.nats_url.get_secret_value(), name="atelier-gateway", replicas=settings.nats_replicas)


def _feed(settings: GatewaySettings, bus: Bus) -> LiveFeed:
    return LiveFeed(bus, heartbeat_seconds=settings.live_heartbeat_seconds)


def document(table: RouteTable, image: FileDescriptorSet, *, version: str) -> dict[str, Any]:
    """Return the OpenAPI document of the gateway."""
    return build_document(
        table.routes,
        image,
        version=version,
        extra_paths={**openapi.PATHS, **lora_openapi.PATHS, **live_openapi.PATHS, **jobs_openapi.PATHS},
        extra_schemas={**openapi.SCHEMAS, **lora_openapi.SCHEMAS, **live_openapi.SCHEMAS, **jobs_openapi.SCHEMAS},
    )


def _lora_uploads(
    settings: GatewaySettings,
    services: Sequence[ContractService],
    stubs: Mapping[str, Any],
    context: EndpointContext,
    objects: ObjectStore,
) -> LoraUploads | None:
    library = next((one.descriptor for one in services if one.descriptor.full_name == SERVICE), None)
    if library is None:
        return None
    methods = {
        name: UploadMethod(library.methods_by_name[name], getattr(stubs[SERVICE], name)) for name in UPLOADS.values()
    }
    return LoraUploads(
        objects,
        context.guard,
        methods,
        context.calls,
        max_bytes=settings.max_lora_bytes,
        timeout_seconds=settings.lora_timeout_seconds,
    )


def _channel(settings: GatewaySettings, stack: AsyncExitStack, address: str, services: list[str]) -> MeshChannel:
    channel = MeshChannel.from_settings(
        settings, address, default_deadline_seconds=settings.rpc_timeout_seconds, services=services
    )
    stack.push_async_callback(channel.close)
    return channel


def _probe(channel: MeshChannel, asked: str) -> Probe:
    stub = channel.stub(health_pb2_grpc.HealthStub)

    async def probe(seconds: float) -> ServiceHealth:
        try:
            listed = await stub.List(health_pb2.HealthListRequest(), timeout=seconds)
        except MeshError as error:
            if error.kind is not ErrorKind.UNIMPLEMENTED:
                raise
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=asked), timeout=seconds)
            return ServiceHealth(answer.status == SERVING)
        states = {name: one.status == SERVING for name, one in listed.statuses.items()}
        broken = sorted(name for name, works in states.items() if name and not works and is_part(name))
        return ServiceHealth(states.get(asked, False), tuple(broken))

    return probe


def _parts(objects: ObjectStore | None, stack: AsyncExitStack) -> PartStates:
    parts = PartStates([] if objects is None else [HealthPart("object_store", objects.ping)])
    stack.push_async_callback(parts.close)
    return parts
