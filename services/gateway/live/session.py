"""One client's conversation over a WebSocket: what it asks for, what it is sent, and why it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from starlette.types import Receive, Send

from meshkit.errors import ErrorKind, MeshError
from meshkit.live.feed import LiveFeed
from meshkit.live.log import FellBehindError, LiveMessage, LiveReader
from services.gateway.live import logs
from services.gateway.live.degradation import OperatorTokens
from services.gateway.live.logs import JobLog
from services.gateway.live.messages import BadMessageError, Ping, Pong, Resync, Subscribe, WantedTypes, read

NORMAL, REFUSED, INTERNAL, RESTARTING, TOO_SLOW = 1000, 1008, 1011, 1012, 1013
_WATCH_SECONDS = 5.0
# Answers that wait for a client to read; one that asks on and reads nothing is not listened to meanwhile.
_MOST_ANSWERS = 16
# A client says little; one that says this much within the span is broken.
_MOST_SAID = 300
_SAID_SECONDS = 10.0
_CLOSE_SECONDS = 1.0


class ClosingError(Exception):
    """The conversation ends.

    Attributes:
        code: Code of the close.
        reason: Why, for people.
        cause: Why, in one word of few.
    """

    def __init__(self, code: int, reason: str, cause: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.cause = cause


class ClientLeftError(Exception):
    """The client closed the connection."""


@dataclass(frozen=True, slots=True)
class SessionContext:
    """What every conversation works with.

    Attributes:
        feed: Has the messages.
        idle_seconds: How long a client may say nothing.
        stopping: Set when the process ends.
        operators: Has the tokens of operators.
    """

    feed: LiveFeed
    idle_seconds: float
    stopping: asyncio.Event
    operators: OperatorTokens


class LiveSession:
    """One conversation.

    Args:
        receive: Gives what the client says.
        send: Takes what it is told.
        reader: Its place among the messages.
        check: Raises `MeshError` once its token holds no more.
        log: The log of the one job that it is about; None for everything of its tenant.
        context: What every conversation works with.
    """

    def __init__(
        self,
        receive: Receive,
        send: Send,
        reader: LiveReader,
        check: Callable[[], Awaitable[object]],
        context: SessionContext,
        *,
        log: JobLog | None = None,
    ) -> None:
        self._log = log
        self._receive = receive
        self._send = send
        self._reader = reader
        self._check = check
        self._context = context
        self._feed = context.feed
        self._wanted = WantedTypes()
        self._answers: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue(_MOST_ANSWERS)
        self._heard = time.monotonic()

    async def run(self) -> str:
        """Converse until one of both ends it; return why."""
        parts = [asyncio.ensure_future(one) for one in (self._listen(), self._speak(), self._watch(), self._stop())]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in parts:
                one.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
        error = next((found for one in done if (found := one.exception()) is not None), None)
        if isinstance(error, ClosingError):
            await close(self._send, error)
            return error.cause
        # A send to a client that has left raises an OSError of the server's.
        if error is None or isinstance(error, ClientLeftError | OSError):
            return "left"
        raise error

    async def _listen(self) -> None:
        began, said = self._heard, 0
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                raise ClientLeftError
            self._heard = time.monotonic()
            if self._heard - began > _SAID_SECONDS:
                began, said = self._heard, 0
            said += 1
            if said > _MOST_SAID:
                raise ClosingError(REFUSED, "The client says more than is listened to", "rate")
            try:
                await self._take(read(message.get("text")))
            except BadMessageError as error:
                text = self._feed.error(error.error, str(error), error.details)
                await self._later(partial(self._text, text))

    async def _take(self, said: Ping | Pong | Subscribe | Resync) -> None:
        if isinstance(said, Ping):
            await self._answer({"type": "pong"})
        elif isinstance(said, Subscribe):
            self._wanted.change(said)
            action = "unsubscribed" if said.ends else "subscribed"
            await self._answer({"action": action, "events": said.patterns})
        elif isinstance(said, Resync):
            await self._feed.log.ready.wait()
            await self._later(partial(self._replay, said))

    async def _answer(self, answer: Any) -> None:
        await self._later(partial(self._text, orjson.dumps(answer).decode()))

    async def _later(self, telling: Callable[[], Awaitable[None]]) -> None:
        await self._answers.put(telling)
        self._reader.wake.set()

    async def _speak(self) -> None:
        for text in self._log.lines if self._log is not None else ():
            await self._text(text)
        while True:
            self._reader.wake.clear()
            while not self._answers.empty():
                await self._answers.get_nowait()()
            try:
                batch = self._reader.take()
            except FellBehindError:
                raise ClosingError(TOO_SLOW, "The client takes events too slowly", "slow") from None
            for message in batch:
                await self._tell(message)
            if not batch and self._answers.empty():
                await self._reader.wake.wait()

    async def _tell(self, message: LiveMessage) -> None:
        if not message.channel:
            await self._text(message.text)
        elif self._log is not None:
            if message.job == self._log.job:
                await self._text(logs.line(message))
        elif self._wanted.has(message.type):
            await self._text(message.text)

    async def _replay(self, asked: Resync) -> None:
        found = self._reader.since(asked.last_sequence)
        count = 0
        for message in found.messages:
            mine = self._log is None or self._log.job == message.job
            if mine and message.channel == asked.channel and self._wanted.has(message.type):
                await self._text(_again(message))
                count += 1
        ack: dict[str, Any] = {
            "type": "resync_ack",
            "channel": asked.channel,
            "last_sequence": found.newest,
            "replayed_count": count,
        }
        if found.too_old:
            ack |= {"gap_too_old": True, "oldest_available": found.oldest}
        await self._text(orjson.dumps(ack).decode())

    async def _text(self, text: str) -> None:
        await self._send({"type": "websocket.send", "text": text})

    async def _watch(self) -> None:
        pause = min(_WATCH_SECONDS, self._context.idle_seconds)
        while True:
            await asyncio.sleep(pause)
            if time.monotonic() - self._heard > self._context.idle_seconds:
                raise ClosingError(NORMAL, "Nothing was said for too long", "idle")
            try:
                await self._check()
            except MeshError as error:
                # Keys that cannot be had say nothing against a token that held before.
                if error.kind is ErrorKind.UNAUTHENTICATED:
                    raise ClosingError(REFUSED, error.message, "token") from None

    async def _stop(self) -> None:
        await self._context.stopping.wait()
        raise ClosingError(RESTARTING, "The gateway stops; come again", "stopping")


def _again(message: LiveMessage) -> str:
    return f'{message.text[:-1]},"replay":true}}'


async def close(send: Send, error: ClosingError) -> None:
    """End a connection; a client that takes nothing is not waited for."""
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await send({"type": "websocket.close", "code": error.code, "reason": error.reason[:120]})
    except (TimeoutError, OSError):
        return
