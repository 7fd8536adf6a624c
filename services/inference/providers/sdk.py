"""Calls by the official clients: each is one request, over a connection of its own, bounded in time and in bytes.

The clients differ in the HTTP library they stand on (`httpx`, or its successor `httpx2`) and in the errors they raise.
What they share is the library's hooks: by them a call learns whether its request was sent, whatever the client makes of
a broken connection.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import ModuleType
from typing import Any, TypeVar

from meshkit.logging import get_logger
from meshkit.retry_after import asked_pause
from meshkit.worker.handlers import TaskFailed
from services.inference.providers.errors import Fault, ProviderError
from services.inference.providers.http import ExchangeLimits

_log = get_logger(__name__)

_T = TypeVar("_T")
_SENT = "send_request_headers.started"


class _SentCall:
    """One call, while it lasts."""

    __slots__ = ("_room", "headers", "holds", "max_bytes", "requests", "sent")

    def __init__(self, max_bytes: int, room: asyncio.Semaphore | None) -> None:
        self._room = room
        self.holds = False
        self.max_bytes = max_bytes
        self.requests = 0
        self.headers: Mapping[str, str] = {}
        self.sent = False

    async def enter(self) -> None:
        """Wait for room for an answer; until then it stays with its sender."""
        if self._room is not None and not self.holds:
            await self._room.acquire()
            self.holds = True

    def leave(self) -> None:
        """Give the room back."""
        if self._room is not None and self.holds:
            self._room.release()
            self.holds = False

    async def trace(self, event: str, _info: Mapping[str, Any]) -> None:
        """Take note of what the connection does."""
        self.sent = self.sent or event.endswith(_SENT)


_CALL: ContextVar[_SentCall] = ContextVar("provider_call")


class SecondRequestError(Exception):
    """A client was about to send a second request within one call."""


class AnswerTooLargeError(Exception):
    """An answer has more bytes than one may have."""


class _BoundedParts:
    """The parts of an answer, up to so many bytes; either library's own class of streams makes it one."""

    def __init__(self, inner: Any, call: _SentCall) -> None:
        self._inner, self._call = inner, call

    async def __aiter__(self) -> AsyncIterator[bytes]:
        await self._call.enter()
        size = 0
        async for part in self._inner:
            size += len(part)
            if size > self._call.max_bytes:
                raise AnswerTooLargeError
            yield part

    async def aclose(self) -> None:
        """Close the answer."""
        await self._inner.aclose()


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def bounded_client(library: ModuleType, limits: ExchangeLimits) -> Any:
    """Return a client of `httpx` or `httpx2` for an official client to stand on.

    Args:
        library: The module.
        limits: What one exchange may take.
    """
    return library.AsyncClient(**client_options(library, limits))


def client_options(library: ModuleType, limits: ExchangeLimits) -> dict[str, Any]:
    """Return the arguments of such a client, where the official one makes it by itself."""
    stream_of = type("BoundedStream", (_BoundedParts, library.AsyncByteStream), {})

    async def begins(request: Any) -> None:
        call = _CALL.get()
        call.requests += 1
        if call.requests > 1:
            raise SecondRequestError
        request.extensions = {**request.extensions, "trace": call.trace}
        request.extensions["timeout"] = {**request.extensions["timeout"], "connect": limits.connect_seconds}
        # What is compressed may become any number of bytes.
        request.headers["accept-encoding"] = "identity"

    async def answered(response: Any) -> None:
        call = _CALL.get()
        call.headers = response.headers
        response.stream = stream_of(response.stream, call)

    return {
        "follow_redirects": False,
        "trust_env": False,
        "verify": _tls(),
        "timeout": library.Timeout(None, connect=limits.connect_seconds),
        # A connection that was kept may have been closed just now: nobody could tell whether a request had arrived.
        "limits": library.Limits(max_connections=None, max_keepalive_connections=0),
        "event_hooks": {"request": [begins], "response": [answered]},
    }


async def sent_once(
    provider: str,
    work: Callable[[], Awaitable[_T]],
    explain: Callable[[Exception], ProviderError | None],
    limits: ExchangeLimits,
    room: asyncio.Semaphore | None = None,
) -> _T:
    """Make one call by an official client.

    Args:
        provider: The provider's name, for sentences and logs.
        work: The call; it sends one request at most.
        explain: Returns what the provider said by an error; None where the error is no answer of its.
        limits: What the call may take.
        room: Room for answers that are held in memory at once; without it there is any.

    Raises:
        ProviderError: `UNSENT` where nothing was sent, `UNKNOWN` where no answer came, `EMPTY` where it cannot be read,
            or what the provider said.
        TaskFailed: What the call itself raised.
    """
    call = _SentCall(limits.max_bytes, room)
    token = _CALL.set(call)
    try:
        async with asyncio.timeout(limits.seconds):
            return await work()
    except (ProviderError, TaskFailed):
        raise
    except Exception as error:
        if (said := explain(error)) is not None:
            if said.retry_after is None:  # not every client hands an error's headers on
                said.retry_after = retry_after_of(call.headers)
            raise said from None
        fault = Fault.UNSENT if not call.sent else Fault.UNKNOWN if _is_broken(error) else Fault.EMPTY
        # The exception's own text may repeat what was sent; its kind says enough.
        _log.warning("provider_call_failed", provider=provider, sent=call.sent, cause=type(error).__name__)
        raise ProviderError(fault, provider) from None
    finally:
        call.leave()
        _CALL.reset(token)


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an answer's headers ask for; some providers tell milliseconds beside them."""
    millis = headers.get("retry-after-ms", "").strip()
    if millis.isascii() and millis.replace(".", "", 1).isdigit():
        return float(millis[:12]) / 1000
    pause = asked_pause(headers.get("retry-after", ""), datetime.now(UTC))
    return None if pause is None else pause.total_seconds()


def _is_broken(error: BaseException) -> bool:
    """Tell whether the connection, and not the answer that came, is what an error is about."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if isinstance(found, (OSError, AnswerTooLargeError, SecondRequestError)):  # TimeoutError is an OSError
            return True
        if any(kind.__name__ == "TransportError" for kind in type(found).__mro__):  # of httpx and httpx2
            return True
        found = found.__cause__ or found.__context__
    return False
