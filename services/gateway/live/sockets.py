"""WebSocket connections as they come: who asks, from which page, and for what."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

import orjson
from starlette.types import Receive, Scope, Send

from meshkit import tracing
from meshkit.auth import OPERATOR, READ
from meshkit.errors import ErrorKind, MeshError
from meshkit.live.feed import OPERATORS, LiveFeed
from meshkit.live.log import LiveReader
from meshkit.logging import get_logger
from meshkit.metrics import counter, gauge
from meshkit.quotas import TenantShare
from services.gateway.asgi import header
from services.gateway.auth import Authenticator, GatewayCaller
from services.gateway.jobs.calls import JobCallError
from services.gateway.live import logs
from services.gateway.live.logs import JobLog
from services.gateway.live.origins import may_connect
from services.gateway.live.session import INTERNAL, REFUSED, ClosingError, LiveSession, SessionContext, close

_log = get_logger(__name__)
_open = gauge("live_clients", "Clients that listen to events over WebSocket.", ("route",))
_ended = counter("live_clients_ended", "Conversations over WebSocket that ended, by cause.", ("route", "cause"))

EVENTS, SYSTEM_STATUS, LOGS = "/ws/events", "/ws/system", "/ws/jobs/{job_id}/logs"
_LOGS = re.compile(r"/ws/jobs/([^/]+)/logs")
_KEY_PROTOCOL = "api-key."


@dataclass(frozen=True, slots=True)
class SocketPath:
    """What one address gives.

    Attributes:
        scope: Scope that it asks for.
        mesh: Whether it tells of the mesh itself alone.
        job: The one job that it tells of; empty for all.
    """

    scope: str
    mesh: bool = False
    job: str = ""


class ClientSocket:
    """One connection.

    Args:
        receive: Gives what the client says.
        send: Takes what it is told.
        protocol: Subprotocol that it is accepted with.
    """

    def __init__(self, receive: Receive, send: Send, protocol: str | None) -> None:
        self.receive = receive
        self.send = send
        self._protocol = protocol
        self._accepted = False

    async def accept(self) -> None:
        """Accept it, once."""
        if not self._accepted:
            self._accepted = True
            await self.send({"type": "websocket.accept", "subprotocol": self._protocol})


PATHS: Mapping[str, SocketPath] = {EVENTS: SocketPath(READ), SYSTEM_STATUS: SocketPath(OPERATOR, mesh=True)}


class EventSockets:
    """Serves WebSocket connections.

    Args:
        guard: Checks tokens.
        streams: How many streams a tenant has at once; a connection is one.
        origins: Origins whose pages may connect, beside the gateway's own.
        job_lines: Gives the log of a job, by what a caller proves itself by and the job's id.
        context: What every conversation works with.
    """

    def __init__(
        self,
        guard: Authenticator,
        streams: TenantShare,
        origins: tuple[str, ...],
        job_lines: Callable[[str, str], Awaitable[list[dict[str, Any]]]],
        context: SessionContext,
    ) -> None:
        self._job_lines = job_lines
        self._guard = guard
        self._streams = streams
        self._origins = origins
        self._context = context
        self._clients = 0

    @property
    def feed(self) -> LiveFeed:
        """Where the messages come from."""
        return self._context.feed

    @property
    def clients(self) -> int:
        """How many listen."""
        return self._clients

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        path = scope["path"].rstrip("/")
        job = _LOGS.fullmatch(path)
        served, route = (PATHS.get(path), path) if job is None else (SocketPath(READ, job=job[1]), LOGS)
        if (await receive())["type"] != "websocket.connect":
            return
        if served is None:
            await _refuse(send, 404, "Not Found")
            return
        origin = header(scope, b"origin")
        if not may_connect(origin, header(scope, b"host"), self._origins):
            _log.warning("origin_refused", origin=origin[:256], path=path)
            _ended.labels(route, "origin").inc()
            await _refuse(send, 403, "Pages of this origin may not connect")
            return
        token, protocol = _credential(scope)
        started = time.monotonic()
        tracing.use(tracing.begin(header(scope, b"traceparent"), header(scope, b"x-request-id")))
        cause = await self._converse(served, route, token, ClientSocket(receive, send, protocol))
        _ended.labels(route, cause).inc()
        client = scope.get("client")
        seconds = round(time.monotonic() - started, 1)
        _log.info("socket", path=path, cause=cause, seconds=seconds, client=client[0] if client else None)

    async def _converse(self, served: SocketPath, route: str, token: str, socket: ClientSocket) -> str:
        try:
            caller = await self._guard.admit(f"Bearer {token}" if token else "", served.scope)
            async with AsyncExitStack() as held:
                reader = await self._enter(served, route, caller, held)
                # Nothing that happens from now on is missed.
                await socket.accept()
                check = partial(self._guard.check, caller.token, served.scope)
                log = await self._job_log(caller.token, served.job) if served.job else None
                return await LiveSession(socket.receive, socket.send, reader, check, self._context, log=log).run()
        except MeshError as error:
            refused = error.kind in {ErrorKind.UNAUTHENTICATED, ErrorKind.FORBIDDEN, ErrorKind.EXHAUSTED}
            closing = ClosingError(REFUSED if refused else INTERNAL, error.message, "refused" if refused else "failed")
        except ClosingError as error:
            closing = error
        except OSError:  # of a client that has left
            return "left"
        except Exception:
            _log.exception("socket_failed", route=route)
            closing = ClosingError(INTERNAL, "Internal error", "failed")
        # Accepted to be refused: a browser tells its page nothing of a refusal but the code of a close.
        with suppress(OSError):
            await socket.accept()
        await close(socket.send, closing)
        return closing.cause

    async def _job_log(self, token: str, job: str) -> JobLog:
        try:
            told = await self._job_lines(f"Bearer {token}", str(UUID(job)))
        except ValueError:
            raise ClosingError(REFUSED, "The job's id should be a UUID", "refused") from None
        except JobCallError as error:
            raise ClosingError(REFUSED, str(error), "refused") from None
        return JobLog(str(UUID(job)), [logs.text(**line) for line in told])

    async def _enter(self, served: SocketPath, route: str, caller: GatewayCaller, held: AsyncExitStack) -> LiveReader:
        own = OPERATORS if served.mesh else caller.tenant
        share = caller.principal.tenant
        if share:
            self._streams.enter(share)
            held.callback(self._streams.leave, share)
        await held.enter_async_context(self.feed.listening())
        sees_mesh = not served.mesh and caller.principal.has(OPERATOR)
        reader = LiveReader(self.feed.log, own, OPERATORS if sees_mesh else "")
        held.callback(reader.close)
        if served.mesh or sees_mesh:
            held.enter_context(self._context.operators.held(caller.token))
        self._count(route, 1)
        held.callback(self._count, route, -1)
        return reader

    def _count(self, route: str, by: int) -> None:
        self._clients += by
        _open.labels(route).inc(by)


def _credential(scope: Scope) -> tuple[str, str | None]:
    """Return the token of a connection, and the subprotocol that it is accepted with."""
    offered: list[str] = scope.get("subprotocols") or []
    keyed = next((one for one in offered if one.startswith(_KEY_PROTOCOL)), None)
    # Browsers break a connection off whose subprotocols the answer leaves out.
    protocol = keyed or (offered[0] if offered else None)
    query = parse_qs(scope["query_string"].decode("latin-1"))
    scheme, _, sent = header(scope, b"authorization").partition(" ")
    given = (sent.strip() if scheme.lower() in {"bearer", "token"} else "", *query.get("token", ()))
    named = (*query.get("api_key", ()), keyed.removeprefix(_KEY_PROTOCOL) if keyed else "")
    return next((one for one in (*given, *named) if one), ""), protocol


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = orjson.dumps({"detail": detail})
    headers = [(b"content-type", b"application/json")]
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
