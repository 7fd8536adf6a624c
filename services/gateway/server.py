"""The composition of the gateway: channels, verifier, object store, application, HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import Any

import uvicorn
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_health.v1 import health_pb2, health_pb2_grpc
from starlette.types import ASGIApp

from meshkit.auth import TokenVerifier
from meshkit.client import MeshChannel
from meshkit.errors import ErrorKind, MeshError
from meshkit.lifecycle import announce
from meshkit.logging import get_logger
from meshkit.metrics import serve_metrics
from meshkit.objects import ObjectStore
from meshkit.transcoding.openapi import build_document
from meshkit.transcoding.routes import Route, RouteTable, compile_services
from services.gateway import description
from services.gateway.app import GatewayParts, Health, Probe, create_app
from services.gateway.auth import Authenticator
from services.gateway.bodies import BodyBudget
from services.gateway.config import GatewaySettings
from services.gateway.contracts import ContractService, load_services, read_image
from services.gateway.docs import Docs
from services.gateway.endpoints import EndpointContext, Transcoder
from services.gateway.media import MediaSigner
from services.gateway.protocol import CorkedHttp
from services.gateway.storage import Storage
from services.gateway.uploads import ImageCheck, UploadStager

_log = get_logger(__name__)
# Longer than clients and load balancers keep idle connections, so that they and not the gateway close them.
_IDLE_CONNECTION_SECONDS = 75
_BACKLOG = 2048


def build_app(stack: AsyncExitStack, settings: GatewaySettings, stopping: asyncio.Event) -> ASGIApp:
    """Build the application and everything it stands on; what needs closing goes on the stack.

    Raises:
        ContractError: the contracts cannot be served as they stand.
        ValueError: the settings name no key to verify tokens with.
    """
    image = read_image()
    addresses = settings.addresses()
    services = load_services(image, addresses)
    channels = {package: _channel(stack, settings, address, services) for package, address in addresses.items()}
    table = RouteTable(compile_services(one.descriptor for one in services))
    stubs = {one.descriptor.full_name: channels[one.package].stub(one.stub) for one in services}

    def call_of(route: Route) -> Callable[..., Any]:
        call: Callable[..., Any] = getattr(stubs[route.rpc.containing_service.full_name], route.rpc.name)
        return call

    guard = Authenticator(TokenVerifier.from_settings(settings))
    objects = _objects(stack, settings)
    images = ImageCheck(settings.image_checks)
    uploads = UploadStager(objects, images) if objects is not None else None
    around = EndpointContext(settings, guard, uploads, _room(settings), stopping)
    storage = Storage(objects, guard, _signer(settings), images, settings) if objects is not None else None
    release = version("atelier")
    parts = GatewayParts(
        transcoder=Transcoder(table, call_of, around),
        health=Health({package.split(".")[-2]: _probe(one) for package, one in channels.items()}, release),
        storage=storage,
        openapi=document(table, image, version=release),
        docs=Docs(),
    )
    return create_app(parts, settings)


def document(table: RouteTable, image: FileDescriptorSet, *, version: str) -> dict[str, Any]:
    """Return the OpenAPI document of the gateway."""
    return build_document(
        table.routes, image, version=version, extra_paths=description.PATHS, extra_schemas=description.SCHEMAS
    )


def _channel(
    stack: AsyncExitStack, settings: GatewaySettings, address: str, services: list[ContractService]
) -> MeshChannel:
    channel = MeshChannel(
        address,
        default_deadline_seconds=settings.rpc_timeout_seconds,
        max_message_bytes=settings.max_message_bytes,
        services=[one.descriptor.full_name for one in services],
    )
    stack.push_async_callback(channel.close)
    return channel


def _probe(channel: MeshChannel) -> Probe:
    stub = channel.stub(health_pb2_grpc.HealthStub)

    async def probe(seconds: float) -> None:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=seconds)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise MeshError(ErrorKind.UNAVAILABLE, "The service does not serve")

    return probe


def _objects(stack: AsyncExitStack, settings: GatewaySettings) -> ObjectStore | None:
    if not settings.s3_endpoint:
        _log.warning("object_store_not_configured")
        return None
    store = ObjectStore.from_settings(settings)
    stack.push_async_callback(store.close)
    return store


def _room(settings: GatewaySettings) -> BodyBudget:
    return BodyBudget(
        settings.max_bodies_bytes,
        wait_seconds=settings.body_wait_seconds,
        read_seconds=settings.body_read_seconds,
        max_body_bytes=settings.max_body_bytes,
    )


def _signer(settings: GatewaySettings) -> MediaSigner:
    secret = settings.media_secret or settings.auth_secret
    if secret is None:
        _log.warning("media_secret_missing")
    key = secret.get_secret_value().encode() if secret is not None else secrets.token_bytes(32)
    return MediaSigner(key, ttl_seconds=settings.media_url_ttl_seconds)


class _Server(uvicorn.Server):
    """A uvicorn that leaves signals to the process's own handling."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def start(stack: AsyncExitStack, settings: GatewaySettings, stopping: asyncio.Event) -> str:
    """Serve the gateway until the stack is closed.

    Args:
        stack: Takes what needs closing.
        settings: Settings.
        stopping: Set when the process is to end; open event streams then close, other requests are finished.

    Returns:
        The bound address, `host:port`.
    """
    app = build_app(stack, settings, stopping)
    metrics = serve_metrics(settings.metrics_port, settings.metrics_host)
    if metrics is not None:
        stack.callback(metrics.close)
    listener = _listen(settings.listen)
    server = _Server(
        uvicorn.Config(
            app,
            http=CorkedHttp,
            ws="none",
            loop="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=_IDLE_CONNECTION_SECONDS,
            timeout_graceful_shutdown=int(settings.shutdown_grace_seconds) or 1,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))

    async def end() -> None:
        stopping.set()
        server.should_exit = True
        await serving

    stack.push_async_callback(end)
    host, port = listener.getsockname()[:2]
    address = f"{host}:{port}"
    while not server.started and not serving.done():  # noqa: ASYNC110 -- uvicorn offers no event for it
        await asyncio.sleep(0.005)
    if serving.done():
        await serving
    announce(address, settings.port_file)
    _log.info("serving", address=address)
    return address


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
