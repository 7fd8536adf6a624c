"""`GET /api/v1/events`: the same messages as over WebSocket, as server-sent events.

An event's `id` is the message's number, so that a browser which reconnects with `Last-Event-ID` goes on after the last
one it saw, at any gateway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from meshkit.auth import OPERATOR, READ
from meshkit.live.feed import OPERATORS, LiveFeed
from meshkit.live.log import FellBehindError, LiveMessage, LiveReader
from meshkit.quotas import TenantShare
from meshkit.transcoding.decoding import Violation
from meshkit.transcoding.errors import RefusedRequestError
from services.gateway.asgi import header
from services.gateway.auth import Authenticator
from services.gateway.live.degradation import OperatorTokens
from services.gateway.live.messages import BadMessageError, WantedTypes, patterns_of
from services.gateway.middleware import note_route
from services.gateway.streams import HEADERS, KEEP_ALIVE, RETRY, event, until_gone

ROUTE = "/api/v1/events"
_MOST_SEQUENCE = 1 << 63


class LiveStream:
    """Serves the messages as server-sent events.

    Args:
        guard: Checks tokens.
        streams: How many streams a tenant has at once.
        feed: Has the messages.
        operators: Has the tokens of operators.
        keep_alive_seconds: Longest silence.
        stopping: Set when the process ends.
    """

    def __init__(
        self,
        guard: Authenticator,
        streams: TenantShare,
        feed: LiveFeed,
        operators: OperatorTokens,
        *,
        keep_alive_seconds: float,
        stopping: asyncio.Event,
    ) -> None:
        self._guard = guard
        self._streams = streams
        self._feed = feed
        self._operators = operators
        self._keep_alive = keep_alive_seconds
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one listener."""
        note_route(scope, f"GET {ROUTE}")
        caller = await self._guard.admit(header(scope, b"authorization"), READ)
        wanted = WantedTypes(_patterns(Request(scope)))
        last = header(scope, b"last-event-id")
        async with AsyncExitStack() as held:
            self._streams.enter(caller.tenant)
            held.callback(self._streams.leave, caller.tenant)
            await held.enter_async_context(self._feed.listening())
            operates = caller.principal.has(OPERATOR)
            reader = LiveReader(self._feed.log, caller.tenant, OPERATORS if operates else "")
            held.callback(reader.close)
            if operates:
                held.enter_context(self._operators.held(caller.token))
            gone = asyncio.ensure_future(until_gone(receive))
            stop = asyncio.ensure_future(self._stopping.wait())
            try:
                await self._serve(reader, wanted, last, send, (gone, stop))
            finally:
                gone.cancel()
                stop.cancel()
                await asyncio.gather(gone, stop, return_exceptions=True)

    async def _serve(
        self,
        reader: LiveReader,
        wanted: WantedTypes,
        last: str,
        send: Send,
        ends: Sequence[asyncio.Future[Any]],
    ) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await _chunk(send, RETRY)
        if last.isascii() and last.isdecimal() and int(last) < _MOST_SEQUENCE:
            await self._until(self._feed.log.ready.wait(), ends, send)
            missed = reader.go_back(int(last))
            if missed.too_old:
                await _chunk(send, event("gap", b'{"gap_too_old":true,"oldest_available":%d}' % missed.oldest))
        while not any(one.done() for one in ends):
            reader.wake.clear()
            try:
                batch = reader.take()
            except FellBehindError:
                # It comes again with the last number it saw, and is told of the gap.
                break
            for message in batch:
                if message.channel and wanted.has(message.type):
                    await _chunk(send, _rendered(message))
            if not batch:
                await self._until(reader.wake.wait(), ends, send)
        with suppress(OSError):
            await send({"type": "http.response.body", "body": b""})

    async def _until(self, awaited: Awaitable[object], ends: Sequence[asyncio.Future[Any]], send: Send) -> None:
        """Wait for something, or for the end; keep the connection alive meanwhile."""
        waiting = asyncio.ensure_future(awaited)
        try:
            while True:
                done, _ = await asyncio.wait(
                    {waiting, *ends}, timeout=self._keep_alive, return_when=asyncio.FIRST_COMPLETED
                )
                if done:
                    return
                await _chunk(send, KEEP_ALIVE)
        finally:
            waiting.cancel()


def _patterns(request: Request) -> list[str]:
    asked = [one for value in request.query_params.getlist("events") for one in value.split(",") if one]
    try:
        return patterns_of(asked)
    except BadMessageError as error:
        raise RefusedRequestError([Violation(("query", "events"), str(error), "value_error")]) from None


def _rendered(message: LiveMessage) -> bytes:
    return event(message.type, message.text.encode(), message.sequence)


async def _chunk(send: Send, chunk: bytes) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": True})
