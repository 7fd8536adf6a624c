"""Short calls that begin at the same time travel together, by `BundleService`.

A gRPC call costs a Python client about 100 us and a server about 200 us of processor, however little it says; as a
member of a bundle it costs a third of that. A call that is alone goes by itself at once. Other calls wait a few
milliseconds at most; the bundle leaves early, once as many calls wait as were under way lately.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from atelier.mesh.v1.bundle_service_pb2 import BundledOutcome, CarryRequest, CarryResponse

from meshkit.errors import ErrorKind, MeshError, unavailable
from meshkit.lingers import BUNDLE_LINGER
from meshkit.logging import get_logger
from meshkit.microbatch import MicroBatcher
from meshkit.status import from_status

_log = get_logger(__name__)

PATH = "/atelier.mesh.v1.BundleService/Carry"
# A call of more bytes gains little, and would hold up the others.
_MAX_BYTES = 64 * 1024
_MAX_CALLS = 32
# For so long after a bundle a call that is alone waits for others: the callers of the last ones are about to go on.
_WARM_SECONDS = 0.05
# A server of an earlier release does not know bundles; it may have been replaced by then.
_UNKNOWN_SECONDS = 60.0
# Refusals of the bundle itself, its calls untouched.
_REFUSALS = frozenset(
    {ErrorKind.UNIMPLEMENTED, ErrorKind.UNAUTHENTICATED, ErrorKind.EXHAUSTED, ErrorKind.TOO_LARGE, ErrorKind.INVALID}
)

Pairs = tuple[tuple[str, str | bytes], ...]
Open = Callable[[CarryRequest, float, Pairs], AsyncIterator[CarryResponse]]


class NotBundledError(Exception):
    """The call was not made: it is to go by itself."""


@dataclass(slots=True)
class BundledAnswer:
    """What came of a call that went well."""

    response: bytes
    trailing: Pairs


@dataclass(slots=True)
class _PendingCall:
    path: str
    request: bytes
    metadata: Pairs
    until: float
    answer: asyncio.Future[BundledAnswer]


class Bundler:
    """Gathers calls of one channel.

    Args:
        open_call: Sends a bundle, with a deadline in seconds and metadata; its outcomes, or `MeshError`.
        linger: How long the first call of a bundle waits for others at most.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        open_call: Open,
        *,
        linger: float = BUNDLE_LINGER,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open = open_call
        self._clock = clock
        self._calls: MicroBatcher[_PendingCall] = MicroBatcher(
            self._carry,
            name="bundles",
            linger=linger,
            max_items=_MAX_CALLS,
            more=lambda waiting, _: waiting < self._expected,
            at_once=None,
            clock=clock,
        )
        # How many calls were under way at once lately. Whoever got an answer is about to call again: for so many a
        # bundle waits, and for no more.
        self._expected = 2
        self._under_way = 0
        self._warm_until = 0.0
        self._unknown_until = 0.0

    def enter(self) -> bool:
        """Note that a call begins which might be bundled; `leave` has to follow.

        Returns:
            Whether other calls are under way, or were a moment ago.
        """
        self._under_way += 1
        self._expected = max(self._expected, self._under_way)
        now = self._clock()
        return (self._under_way > 1 or now < self._warm_until) and now >= self._unknown_until

    def leave(self) -> None:
        """Note that a call ended."""
        self._under_way -= 1

    async def send(self, path: str, request: bytes, metadata: Pairs, timeout_seconds: float) -> BundledAnswer:
        """Make a call as a member of a bundle.

        Args:
            path: `/package.Service/Method`.
            request: The serialized request.
            metadata: Its metadata, with a token.
            timeout_seconds: Its deadline.

        Raises:
            NotBundledError: Nothing was sent of it; large ones and those with binary metadata are never carried.
            MeshError: What the server answered; `DEADLINE`.
        """
        if len(request) > _MAX_BYTES:
            raise NotBundledError
        for _, value in metadata:
            if not isinstance(value, str):
                raise NotBundledError
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[BundledAnswer] = loop.create_future()
        until = self._clock() + timeout_seconds
        self._calls.put(_PendingCall(path, request, metadata, until, answer))
        # A fifth of what `asyncio.timeout` costs; the answer is awaited here alone.
        deadline = loop.call_later(timeout_seconds, _expire, answer)
        try:
            return await answer
        finally:
            deadline.cancel()

    async def close(self) -> None:
        """Give up what is on its way; whoever waits for it is told that the service is away."""
        _refuse(await self._calls.close(), unavailable("The channel is closed"))

    async def _carry(self, gathered: list[_PendingCall]) -> None:
        calls = [one for one in gathered if not one.answer.done()]
        self._expected = max(2, self._under_way, self._expected // 2)
        if len(calls) < 2:
            _refuse(calls, NotBundledError())
            return
        self._warm_until = self._clock() + _WARM_SECONDS
        request = _bundle(calls)
        timeout = max(0.0, max(one.until for one in calls) - self._clock())
        # Any token of the bundle's callers opens it; each call is judged by its own.
        token = tuple(pair for pair in calls[0].metadata if pair[0] == "authorization")
        answered = False
        try:
            async for response in self._open(request, timeout, token):
                answered = True
                for outcome in response.outcomes:
                    _settle(calls[outcome.index].answer, outcome)
            _refuse(calls, unavailable("The service did not answer"))
        except MeshError as error:
            if answered or error.kind not in _REFUSALS:
                _refuse(calls, error)
                return
            if error.kind is ErrorKind.UNIMPLEMENTED:
                self._unknown_until = self._clock() + _UNKNOWN_SECONDS
            _log.info("bundle_refused", reason=error.reason, calls=len(calls))
            _refuse(calls, NotBundledError())
        except BaseException:
            _refuse(calls, unavailable("The service is not reachable"))
            raise


def _bundle(calls: list[_PendingCall]) -> CarryRequest:
    # Members are made in place: to make them apart and hand them over copies each, at twice the price.
    request = CarryRequest()
    for one in calls:
        add = request.calls.add(method=one.path, request=one.request).metadata.add
        for key, value in one.metadata:
            if isinstance(value, str):
                add(key=key, value=value)
    return request


def _settle(answer: asyncio.Future[BundledAnswer], outcome: BundledOutcome) -> None:
    if answer.done():
        return
    if outcome.code:
        answer.set_exception(from_status(outcome.code, outcome.status))
    else:
        answer.set_result(BundledAnswer(outcome.response, tuple([(one.key, one.value) for one in outcome.trailing])))


def _expire(answer: asyncio.Future[BundledAnswer]) -> None:
    if not answer.done():
        answer.set_exception(MeshError(ErrorKind.DEADLINE, "The service did not answer in time"))


def _refuse(calls: list[_PendingCall], error: Exception) -> None:
    for one in calls:
        if not one.answer.done():
            one.answer.set_exception(error)
