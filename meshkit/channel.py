"""A channel to a service of the mesh.

It brings round robin over healthy replicas, retries, deadlines, the caller's token, errors as `MeshError`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar, cast

import grpc
from atelier.mesh.v1.bundle_service_pb2 import CarryRequest, CarryResponse
from atelier.options.v1 import options_pb2
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor

from meshkit import auth, bundling, idempotency, repeating, topology, tracing
from meshkit.bundling import Bundler, NotBundledError
from meshkit.certificates import CertificateText, MeshCertificate, for_channel
from meshkit.errors import unavailable
from meshkit.health import REPLICA
from meshkit.repeating import repeated
from meshkit.status import from_rpc_error

if TYPE_CHECKING:
    from meshkit.config import MeshSettings

_Stub = TypeVar("_Stub")
_Response = TypeVar("_Response")
Metadata = tuple[tuple[str, str], ...]
Pairs = tuple[tuple[str, str | bytes], ...]

DEFAULT_DEADLINE_SECONDS = 30.0
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

# gRPC itself repeats what only reads; a create is repeated below, where the call is known to carry a key.
_RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# Time between two pings, and for the answer. A replica that stands still answers none: others get its calls within the
# two together. Servers take a ping every 2 s; those of earlier releases every 5 s: they close a connection on which
# they sent nothing for 9 s, and gRPC pings the next one half as often.
_KEEPALIVE_MS = (20_000, 10_000)
_SPREAD_KEEPALIVE_MS = (3_000, 4_000)
# Targets that may have several addresses.
_SPREAD = ("dns:", "ipv4:", "ipv6:")
_READING = frozenset({options_pb2.SCOPE_READ, options_pb2.SCOPE_SUPPORT})


def call_metadata(
    *,
    token: str | None = None,
    idempotency_key: str | None = None,
    tenant: str | None = None,
    request_id: str | None = None,
    traceparent: str | None = None,
) -> Metadata:
    """Metadata of a call.

    Args:
        token: Bearer token to use in place of the channel's.
        idempotency_key: Makes a create safe to repeat; such calls are retried.
        tenant: Tenant that a service acts for; ignored from any other caller.
        request_id: What the caller calls the request.
        traceparent: W3C trace context in place of the current one.
    """
    pairs: Metadata = (("authorization", f"Bearer {token}"),) if token else ()
    if idempotency_key:
        pairs += ((idempotency.METADATA_KEY, idempotency_key),)
    if tenant:
        pairs += ((auth.TENANT_KEY, tenant),)
    if request_id:
        pairs += (("x-request-id", request_id),)
    if traceparent:
        pairs += (("traceparent", traceparent),)
    return pairs


class MeshChannel:
    """A channel to one service of the mesh; an async context manager.

    Args:
        target: `host:port`, or `dns:///name:port` to spread calls over all addresses of a name whose replica says
            that it takes calls.
        tokens: Gives the bearer token, asked anew for each call so that it can be renewed; None sends none.
        default_deadline_seconds: Deadline of unary calls that name none; streams have none.
        max_message_bytes: Largest message, either way.
        wait_for_ready: Whether calls wait for a connection, within their deadline, in place of failing at once.
        services: Full names of services whose reading methods are retried; all of the mesh where absent.
        certificate: What it presents, and holds the service to; plain text where absent. When it was renewed, calls go
            over new connections, and those under way end on the old ones.
    """

    def __init__(
        self,
        target: str,
        tokens: Callable[[], str] | None = None,
        *,
        default_deadline_seconds: float = DEFAULT_DEADLINE_SECONDS,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        wait_for_ready: bool = False,
        services: Sequence[str] | None = None,
        certificate: MeshCertificate | None = None,
    ) -> None:
        self.target = target
        self._tokens = tokens
        self._deadline = default_deadline_seconds
        self._wait_for_ready = wait_for_ready
        retried = topology.grpc_services() if services is None else services
        self._options = _channel_options(target, max_message_bytes, retried)
        self._certificate = certificate
        self._link = self._connect(None if certificate is None else certificate.text)
        self._replaced: set[_Link] = set()
        self._bundler = Bundler(self._carry)

    @classmethod
    def from_settings(
        cls, settings: MeshSettings, target: str, tokens: Callable[[], str] | None = None, **options: Any
    ) -> Self:
        """Open a channel of a service: with its limit of messages, and its certificate where it has one.

        Args:
            settings: The service's settings.
            target: As for the class, as are the others.
            tokens: As for the class.
            **options: As for the class.

        Raises:
            CertificateError: A file of the certificate is of no use.
        """
        certificate = MeshCertificate.from_settings(settings)
        return cls(target, tokens, max_message_bytes=settings.max_message_bytes, certificate=certificate, **options)

    def stub(self, stub: Callable[[grpc.aio.Channel], _Stub]) -> _Stub:
        """Return a generated stub on this channel.

        Its unary methods return the response and raise `MeshError`; its streaming methods return a `MeshStream`.
        A unary method's `trailing` is called with the trailing metadata of an answer.

        Args:
            stub: The generated class, e.g. `TasksServiceStub`.
        """
        return stub(cast("grpc.aio.Channel", _Facade(self)))

    async def ready(self, timeout_seconds: float) -> None:
        """Wait until the service is connected.

        Args:
            timeout_seconds: How long at most.

        Raises:
            MeshError: `UNAVAILABLE` after that time.
        """
        try:
            await asyncio.wait_for(self._current().channel.channel_ready(), timeout_seconds)
        except TimeoutError:
            raise unavailable("The service is not reachable") from None

    async def close(self, grace: float | None = None) -> None:
        """Close the channel.

        Args:
            grace: Seconds that calls in flight may take.
        """
        for link in (self._link, *self._replaced):
            await link.channel.close(grace)
        await self._bundler.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    def _carry(self, request: CarryRequest, timeout_seconds: float, metadata: Pairs) -> MeshStream[CarryResponse]:
        link = self._current()
        return MeshStream(link.follow(link.bundles(request, timeout=timeout_seconds, metadata=metadata)))

    def _connect(self, text: CertificateText | None) -> _Link:
        if self._certificate is None or text is None:
            return _Link(grpc.aio.insecure_channel(self.target, options=self._options), None)
        options = self._options
        if self._certificate.server_name:
            options = [*options, ("grpc.ssl_target_name_override", self._certificate.server_name)]
        return _Link(grpc.aio.secure_channel(self.target, for_channel(text), options=options), text)

    def _current(self) -> _Link:
        """Return the link for the next call: another one when the certificate was renewed."""
        if self._certificate is None or (text := self._certificate.text) is self._link.text:
            return self._link
        before, self._link = self._link, self._connect(text)
        self._replaced.add(before)
        before.replace(self._replaced.discard)
        return self._link

    def _metadata(self, given: Iterable[tuple[str, str | bytes]] | None) -> Pairs:
        pairs = tuple(given or ())
        names = {key for key, _ in pairs}
        if self._tokens is not None and "authorization" not in names:
            pairs += (("authorization", f"Bearer {self._tokens()}"),)
        trace = tracing.current()
        if trace is not None:
            if "traceparent" not in names:
                pairs += (("traceparent", trace.traceparent),)
            # Without a name of its own a request goes by its trace, on the other side too.
            if "x-request-id" not in names and trace.request_id != trace.trace_id:
                pairs += (("x-request-id", trace.request_id),)
        return pairs


class _Link:
    """What calls go over.

    Attributes:
        channel: gRPC's channel.
        text: The certificate that it presents; None in plain text.
    """

    def __init__(self, channel: grpc.aio.Channel, text: CertificateText | None) -> None:
        self.channel = channel
        self.text = text
        self.bundles = channel.unary_stream(
            bundling.PATH,
            request_serializer=CarryRequest.SerializeToString,
            response_deserializer=CarryResponse.FromString,
        )
        self._calls = 0
        self._on_closed: Callable[[_Link], None] | None = None
        self._closing: asyncio.Task[None] | None = None

    def follow(self, call: Any) -> Any:
        """Count a call until its end, where the link may be replaced meanwhile; return the call."""
        if self.text is not None:
            self._calls += 1
            call.add_done_callback(self._ended)
        return call

    def replace(self, on_closed: Callable[[_Link], None]) -> None:
        """Close it as soon as no call is on it any more."""
        self._on_closed = on_closed
        self._close_if_idle()

    def _ended(self, _call: object) -> None:
        self._calls -= 1
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._on_closed is not None and not self._calls and self._closing is None:
            self._closing = asyncio.create_task(self._close(self._on_closed), name="replaced-link")

    async def _close(self, on_closed: Callable[[_Link], None]) -> None:
        await self.channel.close()
        on_closed(self)


class MeshStream(Generic[_Response]):
    """The responses of a streaming call; iterate over it, or `cancel` it."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _Response:
        try:
            response = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        except asyncio.CancelledError:
            # gRPC tells of `cancel` by the same exception as of the cancellation of the reading task.
            task = asyncio.current_task()
            if self._ended and not (task is not None and task.cancelling()):
                raise StopAsyncIteration from None
            raise
        if response is grpc.aio.EOF:
            raise StopAsyncIteration
        return cast("_Response", response)

    def cancel(self) -> None:
        """End the call, and any iteration over it; the server notices."""
        self._ended = True
        self._call.cancel()

    async def aclose(self) -> None:
        """End the call, for `contextlib.aclosing`."""
        self.cancel()


class _Extras(NamedTuple):
    """What a caller may ask of a call besides."""

    wait_for_ready: bool
    trailing: Callable[[Pairs], None] | None


class _Facade:
    """What a generated stub takes for its channel: gives callables that do what `MeshChannel` promises.

    gRPC's own interceptors would do the same with two more tasks for each call.
    """

    def __init__(self, owner: MeshChannel) -> None:
        self._owner = owner

    def unary_unary(self, path: str, **options: Any) -> Callable[..., Awaitable[Any]]:
        """Part of what generated code calls."""
        return _Unary(self._owner, path, options).call

    def unary_stream(self, path: str, **options: Any) -> Callable[..., MeshStream[Any]]:
        """Part of what generated code calls."""
        owner = self._owner
        callables = _Callables(lambda channel: channel.unary_stream(path, **options))

        def call(
            request: Any,
            *,
            timeout: float | None = None,
            metadata: Iterable[tuple[str, str | bytes]] | None = None,
            wait_for_ready: bool | None = None,
        ) -> MeshStream[Any]:
            pairs = owner._metadata(metadata)  # noqa: SLF001 -- parts of one class over two
            ready = owner._wait_for_ready if wait_for_ready is None else wait_for_ready  # noqa: SLF001 -- parts of one class over two
            link = owner._current()  # noqa: SLF001 -- parts of one class over two
            running = callables.on(link)(request, timeout=timeout, metadata=pairs, wait_for_ready=ready)
            return MeshStream(link.follow(running))

        return call


class _Callables:
    """A method's callable, made anew for each link.

    Args:
        make: Makes it for a channel.
    """

    def __init__(self, make: Callable[[grpc.aio.Channel], Callable[..., Any]]) -> None:
        self._make = make
        self._made: tuple[_Link, Callable[..., Any]] | None = None

    def on(self, link: _Link) -> Callable[..., Any]:
        """Return the callable for a link."""
        if self._made is None or self._made[0] is not link:
            self._made = (link, self._make(link.channel))
        return self._made[1]


class _Unary:
    """A unary method on a channel."""

    def __init__(self, owner: MeshChannel, path: str, options: Mapping[str, Any]) -> None:
        self._owner = owner
        self._path = path
        self._callables = _Callables(lambda channel: channel.unary_unary(path, **options))
        self._write = options["request_serializer"]
        self._read = options["response_deserializer"]
        rule = _rule(path)
        self._creates = rule.idempotent
        self._send = self._bundled if rule.bundled else self._alone

    async def call(
        self,
        request: Any,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 -- gRPC's own parameter, sent to the server as the deadline
        metadata: Iterable[tuple[str, str | bytes]] | None = None,
        wait_for_ready: bool | None = None,
        trailing: Callable[[Pairs], None] | None = None,
    ) -> Any:
        """Return what a stub's method does."""
        owner = self._owner
        pairs = owner._metadata(metadata)  # noqa: SLF001 -- parts of one class over two
        seconds = owner._deadline if timeout is None else timeout  # noqa: SLF001 -- parts of one class over two
        extras = _Extras(owner._wait_for_ready if wait_for_ready is None else wait_for_ready, trailing)  # noqa: SLF001 -- parts of one class over two
        keyed = self._creates and idempotency.METADATA_KEY in dict(pairs)
        return await repeated(
            lambda left: self._send(request, left, pairs, extras), seconds, repeating.ATTEMPTS if keyed else 1
        )

    async def _alone(self, request: Any, left: float, pairs: Pairs, extras: _Extras) -> Any:
        try:
            link = self._owner._current()  # noqa: SLF001 -- halves of one thing, here and below
            inner = self._callables.on(link)
            running = inner(request, timeout=left, metadata=pairs, wait_for_ready=extras.wait_for_ready)
            response = await link.follow(running)
            if extras.trailing is not None:
                extras.trailing(tuple(await running.trailing_metadata() or ()))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        return response

    async def _bundled(self, request: Any, left: float, pairs: Pairs, extras: _Extras) -> Any:
        bundler = self._owner._bundler  # noqa: SLF001 -- parts of one class over two
        expected_peers = bundler.enter()
        try:
            if not expected_peers or extras.wait_for_ready:
                return await self._alone(request, left, pairs, extras)
            try:
                answer = await bundler.send(self._path, self._write(request), pairs, left)
            except NotBundledError:
                return await self._alone(request, left, pairs, extras)
            if extras.trailing is not None:
                extras.trailing(answer.trailing)
            return self._read(answer.response)
        finally:
            bundler.leave()


def _channel_options(target: str, max_message_bytes: int, services: Sequence[str]) -> list[tuple[str, Any]]:
    # To ask a single replica whether it is well would only hide its own answer.
    spread = target.startswith(_SPREAD)
    alive_ms, answer_ms = _SPREAD_KEEPALIVE_MS if spread else _KEEPALIVE_MS
    return [
        ("grpc.service_config", json.dumps(_service_config(services, watched=spread))),
        ("grpc.enable_retries", 1),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_metadata_size", 32 * 1024),
        ("grpc.absolute_max_metadata_size", 64 * 1024),
        ("grpc.keepalive_time_ms", alive_ms),
        ("grpc.keepalive_timeout_ms", answer_ms),
        # Pings of flow control and pings after the second without data: gRPC would wait a minute for either.
        ("grpc.http2.ping_timeout_ms", answer_ms),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 0),
        # A service that was restarted is found again within two seconds, not within gRPC's two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.dns_min_time_between_resolutions_ms", 5000),
        # Channels of one process to one address would share a connection, and its death.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def _service_config(services: Sequence[str], *, watched: bool) -> dict[str, Any]:
    retried = [
        {"service": service, "method": method.name}
        for service in services
        for method in _methods(service)
        if method.GetOptions().Extensions[options_pb2.method].scope in _READING
    ]
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if watched:
        config["healthCheckConfig"] = {"serviceName": REPLICA}
    if retried:
        config["methodConfig"] = [{"name": retried, "retryPolicy": _RETRY_POLICY}]
    return config


def _methods(service: str) -> Sequence[MethodDescriptor]:
    try:
        return descriptor_pool.Default().FindServiceByName(service).methods
    except KeyError:  # its generated code is not loaded, so this process does not call it
        return ()


def _rule(path: str) -> options_pb2.MethodRule:
    service, _, name = path.strip("/").rpartition("/")
    try:
        method = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    except KeyError:
        return options_pb2.MethodRule()
    return method.GetOptions().Extensions[options_pb2.method]
