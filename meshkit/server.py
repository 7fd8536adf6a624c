"""A service's gRPC server.

Between the wire and a servicer a call passes the interceptors that `interceptors` lists, in that order. Handlers are
wrapped once, when their servicer is added.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import grpc
from atelier.mesh.v1.bundle_service_pb2 import CarryRequest, CarryResponse
from atelier.options.v1 import options_pb2
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2_grpc

from meshkit import auth, metrics
from meshkit.certificates import MeshCertificate
from meshkit.decoding import or_unreadable, require_readable
from meshkit.errors import ErrorKind, MeshError
from meshkit.health import HealthServicer, PartStates
from meshkit.interceptors import (
    DEFAULTED,
    KEYED,
    READABLE,
    SCOPED,
    TRACED,
    TRANSLATED,
    Behaviour,
    CalledMethod,
    CallLimits,
    Context,
    Interceptor,
    InterceptorChain,
    abort,
    authenticated,
    limited,
    measured,
    shared,
    texts,
    validated,
    verify,
)
from meshkit.quotas import CALLS, STREAMS, TenantShare
from meshkit.recalling import Followers, Stranded, dismissed, recalled
from meshkit.scopes import scope_name
from meshkit.unbundling import BundledMethod, Unbundler

if TYPE_CHECKING:
    from meshkit.config import MeshSettings
    from meshkit.topology import ServiceSpec

_IN_FLIGHT = metrics.gauge("rpc_server_in_flight", "Calls being served")
# Servers count for themselves; the page adds up when it is asked.
_servers: WeakSet[MeshServer] = WeakSet()
_IN_FLIGHT.set_function(lambda: float(sum(server.calls for server in _servers)))

# Beyond the limit, for health checks and for calls that are being refused with a reason. What comes on top gRPC refuses
# before it reads the request.
_SPARE_CALLS = 64
_LEAVING_SECONDS = 0.5
_PROBE_BYTES = 64 * 1024
# Channels look a name up again when a connection ends, and so learn of replicas that came since. Calls and streams that
# are under way go on over the old connection.
_CONNECTION_AGE_MS = 120_000

AddServicer = Callable[[Any, Any], None]
Servicers = Sequence[tuple[AddServicer, Any]]
BUNDLES = "atelier.mesh.v1.BundleService"


def interceptors(
    settings: MeshSettings,
    limits: CallLimits,
    followers: Followers,
    verifier: auth.TokenVerifier,
    clock: Callable[[], float],
    *,
    stranded: Stranded,
) -> tuple[Interceptor, ...]:
    """Return what every call of a server passes, from the wire inwards."""
    return (
        measured(clock, logged=settings.log_level == "debug"),  # what others refuse is measured as well
        TRANSLATED,
        dismissed(followers),
        recalled(stranded),
        limited(limits),  # before anything is done for the call
        TRACED,  # from here on log lines bear the trace
        authenticated(verifier),
        shared(
            TenantShare(CALLS, settings.tenant_max_calls, "tenant_max_calls"),
            TenantShare(STREAMS, settings.tenant_max_streams, "tenant_max_streams"),
        ),
        KEYED,
        SCOPED,
        READABLE,  # not before the caller is known
        DEFAULTED,
        validated(settings.free_form_limits),  # holds the request with its defaults to the rules
    )


def build_server(
    settings: MeshSettings, spec: ServiceSpec, servicers: Servicers, parts: PartStates | None = None
) -> MeshServer:
    """Build the server of a service of the mesh.

    Args:
        settings: Its settings.
        spec: Its entry in `meshkit.topology`.
        servicers: For each gRPC service its generated `add_...Servicer_to_server` and the servicer.
        parts: What it stands on, for health checks.

    Raises:
        ValueError: The servicers serve a gRPC service that is not in the entry, or the settings name no key to verify
            tokens with.
    """
    verifier = auth.TokenVerifier.from_settings(settings)
    server = MeshServer(settings, servicers=servicers, verifier=verifier, parts=parts)
    if strange := set(server.services) - set(spec.grpc):
        raise ValueError(f"the entry of {spec.role} does not name {', '.join(sorted(strange))}")
    return server


class MeshServer:
    """A gRPC server with what every service needs.

    Args:
        settings: Limits and grace.
        listen: `host:port`; port 0 lets the system choose. The settings' address where absent.
        servicers: For each service its generated `add_...Servicer_to_server` and the servicer.
        verifier: Verifies tokens.
        parts: What the service stands on, for health checks.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        settings: MeshSettings,
        *,
        servicers: Servicers,
        verifier: auth.TokenVerifier,
        listen: str | None = None,
        parts: PartStates | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._listen = listen or settings.listen
        self._grace = settings.shutdown_grace_seconds
        self._verifier = verifier
        self._certificate = MeshCertificate.from_settings(settings)
        # Streams of followers last for hours: they leave half of the calls to others.
        self._limits = CallLimits(settings.max_concurrent_calls, settings.max_concurrent_calls // 2)
        self._followers = Followers()
        stranded = Stranded()
        self._chain = InterceptorChain(
            interceptors(settings, self._limits, self._followers, verifier, clock, stranded=stranded)
        )
        _servers.add(self)
        self._server = grpc.aio.server(
            options=server_options(settings.max_message_bytes, settings.max_request_bytes),
            # Each channel that spreads its calls watches the health of every replica, by a stream beside its calls.
            maximum_concurrent_rpcs=2 * settings.max_concurrent_calls + _SPARE_CALLS,
        )
        self._health = HealthServicer(
            parts or PartStates(), max_watchers=settings.max_concurrent_calls, while_cut_off=stranded.end
        )
        self._carried: dict[str, BundledMethod] = {}
        self._unbundler = Unbundler(self._carried)
        recorder = _Recorder(self)
        for add, servicer in servicers:
            add(servicer, recorder)
        self.services = recorder.register(self._server)
        self._names = (*self.services, *self._serve_bundles())
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        _enable_reflection(self._names, self._server, None if settings.reflection_open else verifier)
        self._probed = ProbedServer(self._health, settings.health_listen) if settings.health_listen else None
        self.port = 0

    @property
    def calls(self) -> int:
        """Calls being served."""
        return self._limits.calls

    @property
    def address(self) -> str:
        """`host:port` in use, once started."""
        return f"{self._listen.rpartition(':')[0]}:{self.port}"

    @property
    def probed_port(self) -> int:
        """Port that answers health checks in plain text, once started; 0 where there is none."""
        return 0 if self._probed is None else self._probed.port

    async def start(self) -> int:
        """Start to serve.

        Returns:
            The port in use.

        Raises:
            MeshError: `UNAVAILABLE` where an address is taken.
        """
        self.port = listen_on(self._server, self._listen, self._certificate)
        await self._server.start()
        if self._probed is not None:
            await self._probed.start()
        for name in ("", *self._names):
            await self.set_health(name, serving=True)
        await self._health.open()
        return self.port

    async def set_health(self, service: str, *, serving: bool) -> None:
        """Tell health checks of a service's state.

        Args:
            service: Full name of the service, empty for the process.
            serving: Whether it can do its work.
        """
        await self._health.tell(service, serving=serving)

    async def stop(self, grace: float | None = None) -> None:
        """Refuse new calls, end the streams of followers, let the other calls in flight end, and close.

        Args:
            grace: Seconds until calls in flight are cut off; the settings' where absent.
        """
        await self._health.enter_graceful_shutdown()
        if self._health.watched:
            # Channels that were told send what comes to other replicas; what is on its way is served.
            await asyncio.sleep(_LEAVING_SECONDS)
        self._health.dismiss()
        self._followers.dismiss()
        await self._server.stop(self._grace if grace is None else grace)
        if self._probed is not None:
            await self._probed.stop()
        await self._health.close()

    def _serve_bundles(self) -> tuple[str, ...]:
        if not self._carried:
            return ()
        # Not through `guard`: what that asks for is asked of each call.
        handler = grpc.unary_stream_rpc_method_handler(
            self._carry, or_unreadable(CarryRequest.FromString), CarryResponse.SerializeToString
        )
        self._server.add_registered_method_handlers(BUNDLES, {"Carry": handler})
        return (BUNDLES,)

    def guard(self, path: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """Wrap a method's handler with the interceptors."""
        method = describe(path, handler)
        behaviour = _behaviour(handler)
        read, write = handler.request_deserializer, handler.response_serializer
        if method.gives_stream:
            wrapped = self._chain.stream(method, behaviour)
        else:
            serve = self._chain.unary(method, behaviour)
            wrapped = _aborting(serve)
            if method.bundled and read is not None and write is not None:
                self._carried[f"/{path}"] = BundledMethod(serve, read, write)
        make = _HANDLER_MAKERS[method.takes_stream, method.gives_stream]
        result: grpc.RpcMethodHandler[Any, Any] = make(wrapped, read and or_unreadable(read), write)
        return result

    async def _carry(self, request: CarryRequest, context: Context) -> AsyncIterator[CarryResponse]:
        """Serve a bundle: any caller's token opens it, each call is judged by its own."""
        try:
            await verify(self._verifier, texts(context))
            require_readable(request)
            async for response in self._unbundler.carry(request):
                yield response
        except MeshError as error:
            await abort(context, error)


def _aborting(serve: Behaviour) -> Behaviour:
    async def call(request: Any, context: Context) -> Any:
        try:
            return await serve(request, context)
        except MeshError as error:
            await abort(context, error)

    return call


class ProbedServer:
    """Answers health checks in plain text, for probes that speak no TLS, and nothing else.

    Args:
        health: What answers.
        listen: `host:port`; port 0 lets the system choose.
    """

    def __init__(self, health: HealthServicer, listen: str) -> None:
        self._listen = listen
        self._server = grpc.aio.server(
            options=server_options(_PROBE_BYTES, _PROBE_BYTES), maximum_concurrent_rpcs=_SPARE_CALLS
        )
        health_pb2_grpc.add_HealthServicer_to_server(health, self._server)
        self.port = 0

    async def start(self) -> None:
        """Start to answer.

        Raises:
            MeshError: `UNAVAILABLE` where the address is taken.
        """
        self.port = listen_on(self._server, self._listen, None)
        await self._server.start()

    async def stop(self) -> None:
        """Close."""
        await self._server.stop(0)


def listen_on(server: grpc.aio.Server, listen: str, certificate: MeshCertificate | None) -> int:
    """Have a server listen, and return the port in use.

    Args:
        server: The server, not yet started.
        listen: `host:port`; port 0 lets the system choose.
        certificate: What it shows, and asks clients for; plain text where absent.

    Raises:
        MeshError: `UNAVAILABLE` where the address is taken.
    """
    try:
        if certificate is None:
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, certificate.for_server())
    except RuntimeError:
        port = 0
    if not port:
        raise MeshError(ErrorKind.UNAVAILABLE, f"Cannot listen on {listen}", reason="ADDRESS_IN_USE")
    return port


def server_options(max_message_bytes: int, max_request_bytes: int) -> list[tuple[str, Any]]:
    """Channel arguments of a server.

    Args:
        max_message_bytes: Largest answer.
        max_request_bytes: Largest request. gRPC holds the whole of it before the token can be looked at.
    """
    return [
        ("grpc.max_receive_message_length", min(max_message_bytes, max_request_bytes)),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_metadata_size", 32 * 1024),
        ("grpc.absolute_max_metadata_size", 64 * 1024),
        # A port that another process holds is an error, not something to share.
        ("grpc.so_reuseport", 0),
        # Clients ping every 3 or 20 s while calls wait; the default would call that an attack.
        ("grpc.http2.min_ping_interval_without_data_ms", 2000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_connection_age_ms", _CONNECTION_AGE_MS),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]


class _Recorder:
    """Stands in for the server while servicers are added, so that their handlers can be wrapped."""

    def __init__(self, owner: MeshServer) -> None:
        self._owner = owner
        self._services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Part of what generated code calls; what it registers comes by name below."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Take a service's handlers from the generated code."""
        self._services[service] = {
            method: self._owner.guard(f"{service}/{method}", handler) for method, handler in handlers.items()
        }

    def register(self, server: grpc.aio.Server) -> tuple[str, ...]:
        """Hand the wrapped handlers to the real server; return the full names of the services."""
        for service, handlers in self._services.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
            server.add_registered_method_handlers(service, handlers)
        return tuple(self._services)


_HANDLER_MAKERS: Mapping[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _behaviour(handler: grpc.RpcMethodHandler[Any, Any]) -> Behaviour:
    behaviour: Behaviour | None = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    if behaviour is None:
        raise TypeError("a handler without a behaviour")
    return behaviour


def describe(path: str, handler: grpc.RpcMethodHandler[Any, Any]) -> CalledMethod:
    """Return what the contract says of a method; one that no contract describes is for services alone.

    Args:
        path: `package.Service/Method`.
        handler: Its handler.
    """
    service, _, name = path.rpartition("/")
    try:
        method = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    except KeyError:
        rule = options_pb2.MethodRule()
    else:
        rule = method.GetOptions().Extensions[options_pb2.method]
    return CalledMethod(
        name=f"{service.rpartition('.')[2]}/{name}",
        scope=scope_name(rule.scope),
        bundled=rule.bundled,
        takes_stream=bool(handler.request_streaming),
        gives_stream=bool(handler.response_streaming),
    )


def _enable_reflection(names: Sequence[str], server: grpc.aio.Server, verifier: auth.TokenVerifier | None) -> None:
    """Tell the contracts to whoever bears a token; to anyone where there is no verifier."""
    from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc  # noqa: PLC0415 -- only where a server is

    class Reflection(reflection.aio.ReflectionServicer):  # type: ignore[misc]  # the library has no types
        async def ServerReflectionInfo(  # noqa: N802 -- the contract's name
            self, request_iterator: Any, context: Context
        ) -> AsyncIterator[Any]:
            if verifier is not None:
                try:
                    await verify(verifier, texts(context))
                except MeshError as error:
                    await abort(context, error)
            async for response in super().ServerReflectionInfo(request_iterator, context):
                yield response

    servicer = Reflection(service_names=[*names, health.SERVICE_NAME, reflection.SERVICE_NAME])
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
