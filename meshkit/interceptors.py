"""What a call passes between the wire and its servicer: one interceptor for each concern, and the chain that runs them.

The list of a server's interceptors, in its order, stands in `meshkit.server`. Calls that came alone and calls that came
in a bundle pass the same chain.

These are not gRPC's own interceptors: those are asked again at every call and cost another task each. A chain is made
once, with the server; a call costs one object and one function for each interceptor, and awaits the token alone.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from meshkit import auth, idempotency, metrics, spans, tracing
from meshkit.decoding import require_readable
from meshkit.errors import (
    ErrorKind,
    MeshError,
    exhausted,
    is_out_of_room,
    no_room,
    unauthenticated,
)
from meshkit.freeform import FreeFormLimits
from meshkit.logging import get_logger
from meshkit.quotas import TenantShare
from meshkit.spans import SpanKind
from meshkit.status import CODE_OF_KIND, to_status
from meshkit.unbundling import BundledContext
from meshkit.validation import apply_defaults, check

if TYPE_CHECKING:
    from prometheus_client import Histogram

_log = get_logger(__name__)

_SECONDS = metrics.histogram("rpc_server_seconds", "Duration of calls served", ("method", "code"))
_BEARER = "bearer "
_FAULTS = frozenset({ErrorKind.INTERNAL, ErrorKind.UNAVAILABLE, ErrorKind.DEADLINE})
# Codes that are the server's fault by OpenTelemetry's conventions for gRPC.
_SERVER_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
_UNCAUSED = frozenset({"", auth.WORKER})
_CODE_OF_NUMBER: Mapping[object, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

Context = grpc.aio.ServicerContext[Any, Any]
Behaviour = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class CalledMethod:
    """A method as its contract describes it.

    Attributes:
        name: `Service/Method` without the package, for metrics and logs.
        scope: Scope that the token must hold; empty for any.
        bundled: Whether it takes calls from bundles.
        takes_stream: Whether its requests are a stream.
        gives_stream: Whether its responses are one.
    """

    name: str
    scope: str
    bundled: bool = False
    takes_stream: bool = False
    gives_stream: bool = False

    @property
    def follows(self) -> bool:
        """Whether it streams what happens and changes nothing: its caller goes on elsewhere where it ends."""
        return self.gives_stream and self.scope == auth.READ


class Call:
    """A call on its way to the servicer.

    Attributes:
        method: The method.
        request: The request, or the stream of them.
        context: The call's context.
        metadata: Its metadata that is text, once its trace has begun.
        trace: Its trace, once that has begun.
        principal: Its caller, once the token was verified.
        code: How it ended.
        begun: When it arrived, by the clock of the server.
    """

    __slots__ = ("begun", "code", "context", "metadata", "method", "principal", "request", "trace")

    metadata: Mapping[str, str]
    principal: auth.Principal

    def __init__(self, method: CalledMethod, request: Any, context: Context | BundledContext) -> None:
        self.method = method
        self.request = request
        self.context = context
        self.code = grpc.StatusCode.OK
        self.begun = 0.0
        self.trace: tracing.Trace | None = None


@dataclass(frozen=True, slots=True)
class Interceptor:
    """One concern of every call.

    Attributes:
        enter: Called on the way in; what it returns is awaited, where it returns anything. It refuses the call by a
            `MeshError`.
        failed: Called with whatever ended the call early; gives the error that ends it instead.
        leave: Called on the way out, however the call ended, where `enter` had not refused it.
    """

    enter: Callable[[Call], Awaitable[None] | None] | None = None
    failed: Callable[[Call, BaseException], BaseException] | None = None
    leave: Callable[[Call], None] | None = None


class InterceptorChain:
    """Runs interceptors around servicers.

    Args:
        interceptors: From the wire inwards.
    """

    def __init__(self, interceptors: Sequence[Interceptor]) -> None:
        entered = [one for one in interceptors if one.enter is not None]
        self._enters = tuple(one.enter for one in entered if one.enter is not None)
        self._failed = tuple(one.failed for one in reversed(interceptors) if one.failed is not None)
        # By the number of those that were entered: what has to be left, from the servicer outwards.
        self._leaves = tuple(
            tuple(one.leave for one in reversed(entered[:count]) if one.leave is not None)
            for count in range(len(entered) + 1)
        )

    def unary(self, method: CalledMethod, behaviour: Behaviour) -> Behaviour:
        """Wrap a servicer's method that gives one response; what it raises is a `MeshError`, or ends the task."""
        enters, leaves = self._enters, self._leaves

        async def serve(request: Any, context: Context | BundledContext) -> Any:
            call = Call(method, request, context)
            entered = 0
            try:
                for enter in enters:
                    waiting = enter(call)
                    if waiting is not None:
                        await waiting
                    entered += 1
                return await behaviour(call.request, context)
            except BaseException as error:
                ending = self._ending(call, error)
                if ending is error:
                    raise
                raise ending from None
            finally:
                for leave in leaves[entered]:
                    leave(call)

        return serve

    def stream(self, method: CalledMethod, behaviour: Behaviour) -> Behaviour:
        """Wrap a servicer's method that gives a stream; it ends the call with its error itself."""
        enters, leaves = self._enters, self._leaves

        async def serve(request: Any, context: Context) -> AsyncIterator[Any]:
            call = Call(method, request, context)
            entered = 0
            try:
                for enter in enters:
                    waiting = enter(call)
                    if waiting is not None:
                        await waiting
                    entered += 1
                responses = behaviour(call.request, context)
                if inspect.isawaitable(responses):  # a servicer that writes to the context itself
                    await responses
                    return
                async for response in responses:
                    yield response
            except BaseException as error:
                ending = self._ending(call, error)
                if isinstance(ending, MeshError):
                    await abort(context, ending)
                raise
            finally:
                for leave in leaves[entered]:
                    leave(call)

        return serve

    def _ending(self, call: Call, error: BaseException) -> BaseException:
        for failed in self._failed:
            error = failed(call, error)
        return error


class CallLimits:
    """How many calls are served at once.

    Args:
        max_calls: Calls of any kind.
        max_streams: Those among them that stream.
    """

    def __init__(self, max_calls: int, max_streams: int) -> None:
        self.calls = 0
        self._streams = 0
        self._max_calls = max_calls
        self._max_streams = max_streams

    def enter(self, call: Call) -> None:
        """Count a call, or refuse it."""
        streams = call.method.gives_stream
        if self.calls >= self._max_calls or (streams and self._streams >= self._max_streams):
            raise exhausted("The service takes no more calls right now", reason="TOO_MANY_CALLS")
        self.calls += 1
        self._streams += streams

    def leave(self, call: Call) -> None:
        """Count it no more."""
        self.calls -= 1
        self._streams -= call.method.gives_stream


def limited(limits: CallLimits) -> Interceptor:
    """Refuse calls beyond the limits."""
    return Interceptor(enter=limits.enter, leave=limits.leave)


def shared(calls: TenantShare, streams: TenantShare) -> Interceptor:
    """Refuse calls beyond their tenant's share; services and workers, whose tokens name no tenant, have none."""

    def enter(call: Call) -> None:
        tenant = call.principal.tenant
        if not tenant:
            return
        calls.enter(tenant)
        if call.method.gives_stream:
            try:
                streams.enter(tenant)
            except MeshError:
                calls.leave(tenant)
                raise

    def leave(call: Call) -> None:
        tenant = call.principal.tenant
        if not tenant:
            return
        calls.leave(tenant)
        if call.method.gives_stream:
            streams.leave(tenant)

    return Interceptor(enter=enter, leave=leave)


def measured(clock: Callable[[], float], *, logged: bool) -> Interceptor:
    """Measure every call, also one that is refused.

    Args:
        clock: Monotonic seconds.
        logged: Whether each is logged too; to ask the logger what it does not write costs as much as to count.
    """
    # Looking a series up by its labels costs more than all else that is measured here.
    series: dict[tuple[str, grpc.StatusCode], Histogram] = {}

    def enter(call: Call) -> None:
        call.begun = clock()

    def leave(call: Call) -> None:
        seconds = clock() - call.begun
        name, code = call.method.name, call.code
        found = series.get((name, code))
        if found is None:
            found = series[name, code] = _SECONDS.labels(name, code.name)
        found.observe(seconds)
        if spans.recording(call.trace):
            _record(call, seconds)
        if logged:
            _log.debug("call", method=name, code=code.name, milliseconds=round(seconds * 1000, 2))

    return Interceptor(enter=enter, leave=leave)


def _record(call: Call, seconds: float) -> None:
    trace, method = call.trace, call.method
    # What workers ask all the time belongs to no request, and neither does the bundle that others travelled in.
    if trace is None or (not trace.parent_id and method.scope in _UNCAUSED):
        return
    code = call.code.name
    failure = code if call.code in _SERVER_FAULTS else ""
    attributes = {"rpc.system": "grpc", "rpc.method": method.name, "rpc.response.status_code": code}
    spans.record(trace, method.name, SpanKind.SERVER, seconds=seconds, attributes=attributes, failure=failure)


def _mesh_error(call: Call, error: BaseException) -> BaseException:
    if isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
        translated = _translate(error, call.method)
        call.code = CODE_OF_KIND[translated.kind]
        return translated
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        call.code = grpc.StatusCode.CANCELLED
    elif isinstance(error, grpc.aio.AbortError):  # a servicer that tells the context itself
        code = None if isinstance(call.context, BundledContext) else call.context.code()
        call.code = _CODE_OF_NUMBER.get(code, grpc.StatusCode.UNKNOWN)
    return error


def _translate(error: Exception, method: CalledMethod) -> MeshError:
    if isinstance(error, MeshError):
        if error.kind in _FAULTS:
            _log.warning(
                "call_failed", method=method.name, kind=error.kind.value, reason=error.reason, error=error.message
            )
        return error
    if isinstance(error, NotImplementedError):  # what generated servicers raise
        return MeshError(ErrorKind.UNIMPLEMENTED, f"{method.name} is not served here")
    ident = secrets.token_hex(8)
    if is_out_of_room(error):
        _log.error("out_of_room", method=method.name, error_id=ident, exc_info=error)
        return no_room(ident)
    _log.error("unexpected_error", method=method.name, error_id=ident, exc_info=error)
    return MeshError(ErrorKind.INTERNAL, f"Internal error {ident}", metadata={"error_id": ident})


TRANSLATED = Interceptor(failed=_mesh_error)
"""Turns any error into a `MeshError`; the text of an unexpected one goes into the log alone, under an identifier."""


def _begin_trace(call: Call) -> None:
    metadata = call.metadata = texts(call.context)
    trace = call.trace = tracing.begin(metadata.get("traceparent", ""), metadata.get("x-request-id", ""))
    tracing.use(trace)


TRACED = Interceptor(enter=_begin_trace)
"""Continues the caller's trace, and reads the metadata."""


def authenticated(verifier: auth.TokenVerifier) -> Interceptor:
    """Verify the token, and note the caller and the tenant that it acts for."""

    async def enter(call: Call) -> None:
        metadata = call.metadata
        principal = call.principal = await verify(verifier, metadata)
        named = metadata.get(auth.TENANT_KEY, "")
        auth.enter(principal, named)
        tracing.assign_tenant(named if principal.has(auth.MESH) else principal.tenant)

    return Interceptor(enter=enter)


async def verify(verifier: auth.TokenVerifier, metadata: Mapping[str, str]) -> auth.Principal:
    """Return who bears the token in a call's metadata.

    Raises:
        MeshError: `UNAUTHENTICATED` without a token that holds.
    """
    header = metadata.get("authorization", "")
    if not header:
        raise unauthenticated("A bearer token is needed", reason="TOKEN_MISSING")
    if header[: len(_BEARER)].lower() != _BEARER:
        raise unauthenticated("The authorization must be a bearer token", reason="TOKEN_INVALID")
    return await verifier.verify(header[len(_BEARER) :].strip())


def _note_key(call: Call) -> None:
    idempotency.enter(call.metadata.get(idempotency.METADATA_KEY, ""))


KEYED = Interceptor(enter=_note_key)
"""Notes the call's idempotency key."""


def _hold_to_scope(call: Call) -> None:
    scope = call.method.scope
    if scope and not call.principal.has(scope):
        raise MeshError(
            ErrorKind.FORBIDDEN,
            f"The token lacks the scope {scope}",
            reason="SCOPE_MISSING",
            metadata={"scope": scope},
        )


SCOPED = Interceptor(enter=_hold_to_scope)
"""Refuses callers whose token lacks the scope of the method."""


def _of_requests(change: Callable[[Any], None]) -> Interceptor:
    async def each(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            change(request)
            yield request

    def enter(call: Call) -> None:
        if call.method.takes_stream:
            call.request = each(call.request)
        else:
            change(call.request)

    return Interceptor(enter=enter)


READABLE = _of_requests(require_readable)
"""Refuses requests that could not be decoded."""

DEFAULTED = _of_requests(apply_defaults)
"""Fills what a request leaves out with the defaults of the contract."""


def validated(limits: FreeFormLimits) -> Interceptor:
    """Refuse requests that break the rules of the contract, or have larger free-form members."""
    return _of_requests(lambda request: check(request, limits))


def texts(context: Context | BundledContext) -> Mapping[str, str]:
    """Return the metadata of a call that is text."""
    if isinstance(context, BundledContext):
        return context.texts
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


async def abort(context: Context, error: MeshError) -> NoReturn:
    """End a call with an error."""
    code, details, trailing = to_status(error)
    await context.abort(code, details, trailing)
    raise AssertionError("abort returned")
