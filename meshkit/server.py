"""A service's gRPC server: everything between the wire and a servicer, in one place.

A call passes, in this order: trace, token, scope of its method, defaults, validation, the servicer. A `MeshError`
becomes its status; any other error becomes INTERNAL with an identifier, under which the log has the trace.

Handlers are wrapped once, when their servicer is added, and not by gRPC interceptors, which would be asked again for
every call.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakSet

import grpc
from atelier.mesh.v1.bundle_service_pb2 import CarryRequest, CarryResponse
from atelier.options.v1 import options_pb2
from google.protobuf import descriptor_pool
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from meshkit import auth, idempotency, metrics, tracing
from meshkit.errors import ErrorKind, MeshError, exhausted, unauthenticated
from meshkit.logging import get_logger
from meshkit.scopes import scope_name
from meshkit.status import CODE_OF_KIND, to_status
from meshkit.unbundling import BundledContext, BundledMethod, Unbundler
from meshkit.validation import apply_defaults, check

if TYPE_CHECKING:
    from prometheus_client import Histogram

    from meshkit.config import MeshSettings

_log = get_logger(__name__)

_SECONDS = metrics.histogram("rpc_server_seconds", "Duration of calls served", ("method", "code"))
_IN_FLIGHT = metrics.gauge("rpc_server_in_flight", "Calls being served")
# Servers count for themselves; the page adds up when it is asked.
_servers: WeakSet[MeshServer] = WeakSet()
_IN_FLIGHT.set_function(lambda: float(sum(server.calls for server in _servers)))

_BEARER = "bearer "
_FAULTS = frozenset({ErrorKind.INTERNAL, ErrorKind.UNAVAILABLE, ErrorKind.DEADLINE})

# Beyond the limit, for health checks and for calls that are being refused with a reason. What comes on top gRPC refuses
# before it reads the request.
_SPARE_CALLS = 64

AddServicer = Callable[[Any, Any], None]
Context = grpc.aio.ServicerContext[Any, Any]
Behaviour = Callable[..., Awaitable[Any]]
BUNDLES = "atelier.mesh.v1.BundleService"


@dataclass(frozen=True, slots=True)
class _GuardedMethod:
    """What guards a method.

    Attributes:
        name: `Service/Method` without the package, for metrics and logs.
        scope: Scope that the token must hold; empty for any.
        bundled: Whether it takes calls from bundles.
    """

    name: str
    scope: str
    bundled: bool = False


class MeshServer:
    """A gRPC server with what every service needs.

    Args:
        settings: Limits and grace.
        listen: `host:port`; port 0 lets the system choose. The settings' address where absent.
        servicers: For each service its generated `add_...Servicer_to_server`, the servicer and the service's full name.
        verifier: Verifies tokens.
        reflection: Whether clients may ask for the contracts.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        settings: MeshSettings,
        *,
        servicers: Sequence[tuple[AddServicer, Any, str]],
        verifier: auth.TokenVerifier,
        listen: str | None = None,
        reflection: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._listen = listen or settings.listen
        self._grace = settings.shutdown_grace_seconds
        self._verifier = verifier
        self._chatty = settings.log_level == "debug"
        self._clock = clock
        # Looking a series up by its labels costs more than all else that is measured here.
        self._series: dict[tuple[str, grpc.StatusCode], Histogram] = {}
        self._max_calls = settings.max_concurrent_calls
        # Followers stay for hours: however many there are, they leave room for those who want something done.
        self._max_streams = settings.max_concurrent_calls // 2
        self._calls = 0
        self._streams = 0
        _servers.add(self)
        self._names = [name for _, _, name in servicers]
        self._server = grpc.aio.server(
            options=server_options(settings.max_message_bytes),
            maximum_concurrent_rpcs=self._max_calls + _SPARE_CALLS,
        )
        self._health = health.aio.HealthServicer()
        self._carried: dict[str, BundledMethod] = {}
        self._unbundler = Unbundler(self._carried)
        recorder = _Recorder(self)
        for add, servicer, _ in servicers:
            add(servicer, recorder)
        recorder.register(self._server)
        self._serve_bundles()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if reflection:
            _enable_reflection(self._names, self._server)
        self.port = 0

    @property
    def calls(self) -> int:
        """Calls being served."""
        return self._calls

    @property
    def address(self) -> str:
        """`host:port` in use, once started."""
        return f"{self._listen.rpartition(':')[0]}:{self.port}"

    async def start(self) -> int:
        """Start to serve.

        Returns:
            The port in use.

        Raises:
            MeshError: `UNAVAILABLE` where the address is taken.
        """
        try:
            self.port = self._server.add_insecure_port(self._listen)
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise MeshError(ErrorKind.UNAVAILABLE, f"Cannot listen on {self._listen}", reason="ADDRESS_IN_USE")
        await self._server.start()
        for name in ("", *self._names):
            await self.set_health(name, serving=True)
        return self.port

    async def set_health(self, service: str, *, serving: bool) -> None:
        """Tells health checks of a service's state.

        Args:
            service: Full name of the service, empty for the process.
            serving: Whether it can do its work.
        """
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(service, status)

    async def stop(self, grace: float | None = None) -> None:
        """Refuses new calls, lets those in flight end, and closes.

        Args:
            grace: Seconds until calls in flight are cut off; the settings' where absent.
        """
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._grace if grace is None else grace)

    def _serve_bundles(self) -> None:
        if not self._carried:
            return
        # Not through `guard`: what that asks for is asked of each call.
        handler = grpc.unary_stream_rpc_method_handler(
            self._carry, CarryRequest.FromString, CarryResponse.SerializeToString
        )
        self._names.append(BUNDLES)
        self._server.add_registered_method_handlers(BUNDLES, {"Carry": handler})

    def guard(self, path: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """Wrap a method's handler with everything that stands before a servicer."""
        method = _describe(path)
        behaviour = _behaviour(handler)
        read, write = handler.request_deserializer, handler.response_serializer
        if method.bundled and read is not None and write is not None:
            self._carried[f"/{path}"] = BundledMethod(partial(self._answer, method, behaviour), read, write)
        wrapped = self._streaming(method, behaviour) if handler.response_streaming else self._unary(method, behaviour)
        make = _HANDLER_MAKERS[bool(handler.request_streaming), bool(handler.response_streaming)]
        result: grpc.RpcMethodHandler[Any, Any] = make(wrapped, read, write)
        return result

    def _unary(self, method: _GuardedMethod, behaviour: Behaviour) -> Callable[[Any, Context], Any]:
        async def call(request: Any, context: Context) -> Any:
            try:
                return await self._answer(method, behaviour, request, context)
            except MeshError as error:
                await _abort(context, error)

        return call

    async def _answer(
        self, method: _GuardedMethod, behaviour: Behaviour, request: Any, context: Context | BundledContext
    ) -> Any:
        """Serve a unary call, however it came.

        Raises:
            MeshError: Whatever is wrong with it.
        """
        begun = self._clock()
        entered = False
        code = grpc.StatusCode.OK
        try:
            entered = self._enter()
            await self._admit(method, context)
            return await behaviour(_prepare(request), context)
        except grpc.aio.AbortError:  # a servicer that tells the context itself
            code = grpc.StatusCode.UNKNOWN
            raise
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            mesh_error = _as_mesh_error(error, method)
            code = CODE_OF_KIND[mesh_error.kind]
            raise mesh_error from None
        finally:
            if entered:
                self._leave()
            self._observe(method, code, begun)

    def _streaming(self, method: _GuardedMethod, behaviour: Callable[..., Any]) -> Callable[[Any, Context], Any]:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            begun = self._clock()
            entered = False
            code = grpc.StatusCode.OK
            try:
                entered = self._enter(streams=1)
                await self._admit(method, context)
                responses = behaviour(_prepare(request), context)
                if inspect.isawaitable(responses):  # a servicer that writes to the context itself
                    await responses
                    return
                async for response in responses:
                    yield response
            except grpc.aio.AbortError:
                code = context.code() or grpc.StatusCode.UNKNOWN
                raise
            except (asyncio.CancelledError, GeneratorExit):
                code = grpc.StatusCode.CANCELLED
                raise
            except Exception as error:
                mesh_error = _as_mesh_error(error, method)
                code = to_status(mesh_error)[0]
                await _abort(context, mesh_error)
            finally:
                if entered:
                    self._leave(streams=1)
                self._observe(method, code, begun)

        return call

    def _enter(self, streams: int = 0) -> bool:
        if self._calls >= self._max_calls or (streams and self._streams >= self._max_streams):
            raise exhausted("The service takes no more calls right now", reason="TOO_MANY_CALLS")
        self._calls += 1
        self._streams += streams
        return True

    def _leave(self, streams: int = 0) -> None:
        self._calls -= 1
        self._streams -= streams

    async def _admit(self, method: _GuardedMethod, context: Context | BundledContext) -> None:
        metadata = _texts(context)
        trace = tracing.begin(metadata.get("traceparent", ""), metadata.get("x-request-id", ""))
        tracing.use(trace)
        principal = await self._principal(metadata)
        auth.enter(principal, metadata.get(auth.TENANT_KEY, ""))
        tracing.assign_tenant(metadata.get(auth.TENANT_KEY, "") if principal.has(auth.MESH) else principal.tenant)
        idempotency.enter(metadata.get(idempotency.METADATA_KEY, ""))
        if method.scope and not principal.has(method.scope):
            raise MeshError(
                ErrorKind.FORBIDDEN,
                f"The token lacks the scope {method.scope}",
                reason="SCOPE_MISSING",
                metadata={"scope": method.scope},
            )

    async def _principal(self, metadata: Mapping[str, str]) -> auth.Principal:
        header = metadata.get("authorization", "")
        if not header:
            raise unauthenticated("A bearer token is needed", reason="TOKEN_MISSING")
        if header[: len(_BEARER)].lower() != _BEARER:
            raise unauthenticated("The authorization must be a bearer token", reason="TOKEN_INVALID")
        return await self._verifier.verify(header[len(_BEARER) :].strip())

    async def _carry(self, request: CarryRequest, context: Context) -> AsyncIterator[CarryResponse]:
        """Serve a bundle: any caller's token opens it, each call is judged by its own."""
        try:
            await self._principal(_texts(context))
            async for response in self._unbundler.carry(request):
                yield response
        except MeshError as error:
            await _abort(context, error)

    def _observe(self, method: _GuardedMethod, code: grpc.StatusCode, begun: float) -> None:
        seconds = self._clock() - begun
        series = self._series.get((method.name, code))
        if series is None:
            series = self._series[method.name, code] = _SECONDS.labels(method.name, code.name)
        series.observe(seconds)
        # To ask the logger what it does not write costs as much as to count.
        if self._chatty:
            _log.debug("call", method=method.name, code=code.name, milliseconds=round(seconds * 1000, 2))


def server_options(max_message_bytes: int) -> list[tuple[str, Any]]:
    """Channel arguments of a server.

    Args:
        max_message_bytes: Largest message, either way.
    """
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_metadata_size", 32 * 1024),
        ("grpc.absolute_max_metadata_size", 64 * 1024),
        # A port that another process holds is an error, not something to share.
        ("grpc.so_reuseport", 0),
        # Clients ping every 20 s while calls wait; the default would call that an attack.
        ("grpc.http2.min_ping_interval_without_data_ms", 5000),
        ("grpc.keepalive_permit_without_calls", 1),
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

    def register(self, server: grpc.aio.Server) -> None:
        """Hands the wrapped handlers to the real server."""
        for service, handlers in self._services.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
            server.add_registered_method_handlers(service, handlers)


_HANDLER_MAKERS: Mapping[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _behaviour(handler: grpc.RpcMethodHandler[Any, Any]) -> Callable[..., Any]:
    behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    if behaviour is None:
        raise TypeError("a handler without a behaviour")
    return behaviour


def _describe(path: str) -> _GuardedMethod:
    service, _, name = path.rpartition("/")
    short = f"{service.rpartition('.')[2]}/{name}"
    try:
        method = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    except KeyError:
        return _GuardedMethod(short, scope_name(options_pb2.SCOPE_UNSPECIFIED))
    rule = method.GetOptions().Extensions[options_pb2.method]
    return _GuardedMethod(short, scope_name(rule.scope), rule.bundled)


def _prepare(request: Any) -> Any:
    if isinstance(request, Message):
        apply_defaults(request)
        check(request)
        return request
    return _prepared(request)


async def _prepared(requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
    async for request in requests:
        yield _prepare(request)


def _as_mesh_error(error: Exception, method: _GuardedMethod) -> MeshError:
    if isinstance(error, MeshError):
        if error.kind in _FAULTS:
            _log.warning(
                "call_failed", method=method.name, kind=error.kind.value, reason=error.reason, error=error.message
            )
        return error
    if isinstance(error, NotImplementedError):  # what generated servicers raise
        return MeshError(ErrorKind.UNIMPLEMENTED, f"{method.name} is not served here")
    ident = secrets.token_hex(8)
    _log.error("unexpected_error", method=method.name, error_id=ident, exc_info=error)
    return MeshError(ErrorKind.INTERNAL, f"Internal error {ident}", metadata={"error_id": ident})


def _texts(context: Context | BundledContext) -> Mapping[str, str]:
    if isinstance(context, BundledContext):
        return context.texts
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


async def _abort(context: Context, error: MeshError) -> NoReturn:
    code, details, trailing = to_status(error)
    await context.abort(code, details, trailing)
    raise AssertionError("abort returned")


def _enable_reflection(names: Sequence[str], server: grpc.aio.Server) -> None:
    from grpc_reflection.v1alpha import reflection  # noqa: PLC0415 -- only where it is switched on

    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
