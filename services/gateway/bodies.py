"""How much of large requests the gateway holds at once.

JSON has to be whole before it can be read, and is held several times over while it is: as content, as text, as decoded
files. Small bodies pass freely. Large ones wait, in the order in which they came, until enough bytes of the budget are
free: many of them at once take longer and do not exhaust the process's memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.types import Receive, Scope

from meshkit.errors import unavailable
from services.gateway.asgi import header, read_beginning, read_body

_T = TypeVar("_T")
# Bodies up to this size are not counted: as many as there are connections would still be little.
FREE_BYTES = 64 * 1024


class SlowRequestError(Exception):
    """The content of a request did not arrive in time.

    Attributes:
        seconds: How long it had.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not within {seconds:g} s")
        self.seconds = seconds


class BodyBudget:
    """The bytes that the bodies of large requests may take together.

    Args:
        total_bytes: Bytes of all of them together; one that is larger waits until it is alone.
        wait_seconds: How long a request waits for its turn.
        read_seconds: How long its content may take to arrive; who sends nothing may not keep others out.
        max_body_bytes: What a body of unannounced length is counted as.
    """

    def __init__(self, total_bytes: int, *, wait_seconds: float, read_seconds: float, max_body_bytes: int) -> None:
        self._total = total_bytes
        self._wait = wait_seconds
        self._read = read_seconds
        self._max_body = max_body_bytes
        self._taken = 0
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def taken(self) -> int:
        """Bytes that are counted now."""
        return self._taken

    @staticmethod
    def is_free(scope: Scope) -> bool:
        """Tell whether a request's content is small for sure, by what its headers say."""
        announced = header(scope, b"content-length")
        if announced.isdigit():
            return int(announced) <= FREE_BYTES
        return not header(scope, b"transfer-encoding")

    @asynccontextmanager
    async def content(self, scope: Scope, receive: Receive) -> AsyncIterator[bytes]:
        """Read a request's content and keep its bytes counted until the request is answered.

        Yields:
            The content; to be let go of as soon as it is read.

        Raises:
            ClientGoneError: the caller left before it was complete.
            MeshError: `UNAVAILABLE`: the budget was used up for too long.
            SlowRequestError: the content did not arrive in time.
        """
        announced = header(scope, b"content-length")
        beginning, whole = b"", False
        if not announced.isdigit():
            # Most bodies of unannounced length are small ones all the same.
            beginning, whole = await self._in_time(read_beginning(receive, FREE_BYTES))
        if whole:
            yield beginning
            return
        size = min(int(announced) if announced.isdigit() else self._max_body, self._total)
        await self._take(size)
        try:
            yield beginning + await self._in_time(read_body(receive))
        finally:
            self._taken -= size
            self._admit()

    async def _in_time(self, reading: Coroutine[Any, Any, _T]) -> _T:
        try:
            async with asyncio.timeout(self._read):
                return await reading
        except TimeoutError:
            raise SlowRequestError(self._read) from None

    async def _take(self, size: int) -> None:
        if not self._line and self._taken + size <= self._total:
            self._taken += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size, turn)
        self._line.append(entry)
        try:
            async with asyncio.timeout(self._wait):
                await turn
        except BaseException as error:
            self._give_up(entry)
            if isinstance(error, TimeoutError):
                raise unavailable("The gateway is busy with other large requests", reason="NO_ROOM") from None
            raise

    def _give_up(self, entry: tuple[int, asyncio.Future[None]]) -> None:
        if entry in self._line:
            self._line.remove(entry)
        elif entry[1].done() and not entry[1].cancelled():
            # Its turn came in the moment in which it stopped to wait.
            self._taken -= entry[0]
        # Those behind it may fit where it did not.
        self._admit()

    def _admit(self) -> None:
        while self._line and self._taken + self._line[0][0] <= self._total:
            size, turn = self._line.popleft()
            if not turn.done():
                self._taken += size
                turn.set_result(None)
