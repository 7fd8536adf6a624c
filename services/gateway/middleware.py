"""What every request passes on its way in and out, as plain ASGI: identity, access log, headers, body limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import cache

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meshkit import spans, tracing
from meshkit.errors import ErrorKind, MeshError, is_out_of_room, no_room, too_large
from meshkit.logging import get_logger
from meshkit.metrics import counter, exemplar, histogram
from meshkit.spans import SpanKind
from meshkit.tracing import Trace
from meshkit.transcoding.errors import render
from services.gateway.asgi import ClientGoneError, header, send_error

_log = get_logger(__name__)
_requests = counter("http_requests", "Requests answered, by route and status.", ("route", "status"))
_seconds = histogram("http_request_seconds", "Time from a request's headers to the end of its answer.", ("route",))


@cache
def _figures(route: str, status: int) -> tuple[Counter, Histogram]:
    # Looking a metric up by its labels costs more than counting in it; routes and statuses are few.
    return _requests.labels(route, str(status)), _seconds.labels(route)


# nginx's number for it; it is only logged, nobody reads the answer.
_CLIENT_GONE = 499

# A caller that is told 413 while it still sends may never read it, so what it sends is taken and dropped, up to here.
_DRAIN_BYTES = 512 * 1024 * 1024
_DRAIN_SECONDS = 30.0

_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)


# Set in a request's scope once its answer has begun and can become no other one.
ANSWERED = "atelier.answered"


def note_route(scope: Scope, name: str) -> None:
    """Name the route of a request for the access log and the metrics."""
    scope["atelier.route"] = name


class RequestMiddleware:
    """Gives a request its identity, logs it, and answers what nothing inside did."""

    def __init__(self, app: ASGIApp, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._app = app
        self._clock = clock
        # What `get_logger` gives looks for its settings at every line.
        self._log = _log.bind()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = tracing.begin(header(scope, b"traceparent"), header(scope, b"x-request-id"))
        identity = [
            (b"x-request-id", trace.request_id.encode("ascii")),
            (b"traceparent", trace.traceparent.encode("ascii")),
            *_SECURITY_HEADERS,
        ]
        status = 0
        started = self._clock()

        async def answering(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                scope[ANSWERED] = True
                message["headers"] = [*message.get("headers", ()), *identity]
            await send(message)

        before = tracing.current()
        tracing.use(trace)
        try:
            await self._app(scope, receive, answering)
        except ClientGoneError:
            status = status or _CLIENT_GONE
        except MeshError as error:
            if status:
                raise
            await send_error(scope, answering, render(error))
        except Exception as error:
            _log.exception("request_failed")
            if status:
                # The answer has begun: only breaking it off tells the caller that it is not whole.
                raise
            if is_out_of_room(error):
                await send_error(scope, answering, render(no_room(trace.request_id)))
                return
            text = f"Internal error, request {trace.request_id}"
            await send_error(scope, answering, render(MeshError(ErrorKind.INTERNAL, text)))
        finally:
            self._account(scope, status, self._clock() - started, trace)
            tracing.use(before)

    def _account(self, scope: Scope, status: int, seconds: float, trace: Trace) -> None:
        route = scope.get("atelier.route", "none")
        answered, took = _figures(route, status)
        answered.inc()
        took.observe(seconds, exemplar(trace))
        if spans.recording(trace) and not route.startswith("GET /health"):
            _record(trace, route, scope["method"], status, seconds)
        client = scope.get("client")
        # Probes come every few seconds and say nothing as long as they succeed.
        write = self._log.debug if route.startswith("GET /health") and status == 200 else self._log.info
        write(
            "request",
            method=scope["method"],
            # A route may hide its path, where the path itself opens something.
            path=scope.get("atelier.path", scope["path"]),
            route=route,
            status=status,
            ms=round(seconds * 1000, 2),
            client=client[0] if client else None,
        )


def _record(trace: Trace, route: str, method: str, status: int, seconds: float) -> None:
    attributes: spans.Attributes = {
        "http.request.method": method,
        "http.route": route.partition(" ")[2] or route,
        "http.response.status_code": status,
    }
    failure = str(status) if status >= 500 else ""
    spans.record(trace, route, SpanKind.SERVER, seconds=seconds, attributes=attributes, failure=failure)


class BodyLimit:
    """Refuses requests whose content is larger than the limit, announced or not.

    Args:
        app: What they reach.
        max_bytes: The limit.
        elsewhere: Other limits of single paths.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, elsewhere: Mapping[str, int] | None = None) -> None:
        self._app = app
        self._max = max_bytes
        self._elsewhere = elsewhere or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._elsewhere.get(scope["path"].rstrip("/"), self._max)
        announced = header(scope, b"content-length")
        if announced.isdigit() and int(announced) <= most and not header(scope, b"transfer-encoding"):
            # The server takes no more than was announced.
            await self._app(scope, receive, send)
            return
        if announced.isdigit() and int(announced) > most:
            # A caller that waits for `100 Continue` has sent nothing yet and need not.
            if header(scope, b"expect").lower() != "100-continue":
                await _drain(receive)
            await send_error(scope, _closing(send), render(_too_long(most)))
            return
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > most:
                    if message.get("more_body", False):
                        await _drain(receive)
                    raise _too_long(most)
            return message

        await self._app(scope, limited, send)


def _too_long(most: int) -> MeshError:
    return too_large(f"The request's content is larger than the {most} bytes that are taken")


def _closing(send: Send) -> Send:
    async def send_(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        await send(message)

    return send_


async def _drain(receive: Receive) -> None:
    taken = 0
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while taken < _DRAIN_BYTES:
                message = await receive()
                taken += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
