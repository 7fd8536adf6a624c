"""Serves `BundleService`: calls that came in one message, each as if it had come alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from atelier.mesh.v1.bundle_service_pb2 import BundledCall, CarryRequest, CarryResponse
from google.protobuf.message import DecodeError

from meshkit import metrics
from meshkit.errors import ErrorKind, MeshError, invalid
from meshkit.status import DETAILS_KEY, to_status

_CALLS = metrics.histogram("rpc_bundle_calls", "Calls that came in one bundle", (), (2, 4, 8, 16, 32, 64))

MAX_CALLS = 64  # bound of CarryRequest.calls
# A response that is full goes: what is large would hold up the others.
_FULL_BYTES = 1 << 20

Answer = Callable[[Any, "BundledContext"], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class BundledMethod:
    """A method that takes calls from bundles.

    Attributes:
        answer: Serves one call; raises `MeshError`, and nothing else.
        read: Reads a serialized request.
        write: Serializes a response.
    """

    answer: Answer
    read: Callable[[bytes], Any]
    write: Callable[[Any], bytes]


class BundledContext:
    """What a servicer sees of a call that came in a bundle: the part of gRPC's context that servicers here use.

    Attributes:
        texts: The call's metadata by key.
        trailing: Metadata to send with the answer.
    """

    __slots__ = ("texts", "trailing")

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = texts
        self.trailing: Sequence[tuple[str, str | bytes]] = ()

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        """Return the call's metadata."""
        return tuple(self.texts.items())

    def set_trailing_metadata(self, pairs: Sequence[tuple[str, str | bytes]]) -> None:
        """Send metadata with the answer."""
        self.trailing = pairs


class _EndedCall(NamedTuple):
    """How a call ended: with a serialized response where the code is 0, else with a serialized status."""

    place: int
    code: int
    content: bytes
    trailing: Sequence[tuple[str, str | bytes]]


class Unbundler:
    """Takes bundles apart.

    Args:
        methods: What may be called, by `/package.Service/Method`; read at each call.
    """

    def __init__(self, methods: Mapping[str, BundledMethod]) -> None:
        self._methods = methods

    async def carry(self, request: CarryRequest) -> AsyncIterator[CarryResponse]:
        """Serve the calls of a bundle.

        Yields:
            Outcomes as they come; those that one commit brings about come together.

        Raises:
            MeshError: `INVALID` where the bundle itself is not one.
        """
        if not 1 <= len(request.calls) <= MAX_CALLS:
            raise invalid("calls", f"must have 1 to {MAX_CALLS} calls", "too_long" if request.calls else "too_short")
        _CALLS.observe(len(request.calls))
        ended: list[_EndedCall] = []
        arrived = asyncio.Event()

        async def serve(index: int, call: BundledCall) -> None:
            ended.append(await self._outcome(index, call))
            arrived.set()

        # In a task each: the context of a call (caller, trace) must not reach another.
        make = asyncio.get_running_loop().create_task
        running = [make(serve(index, call)) for index, call in enumerate(request.calls)]
        left = len(running)
        try:
            while left:
                await arrived.wait()
                arrived.clear()
                ready, ended[:] = ended[:], []
                left -= len(ready)
                for response in _responses(ready):
                    yield response
        finally:
            for task in running:
                task.cancel()

    async def _outcome(self, index: int, call: BundledCall) -> _EndedCall:
        context = BundledContext({one.key: one.value for one in call.metadata})
        try:
            method = self._methods.get(call.method)
            if method is None:
                raise MeshError(ErrorKind.UNIMPLEMENTED, f"{call.method} takes no calls from bundles")
            content = method.write(await method.answer(_read(method, call), context))
        except MeshError as error:
            code, _, details = to_status(error)
            return _EndedCall(index, code.value[0], dict(details)[DETAILS_KEY], context.trailing)
        return _EndedCall(index, 0, content, context.trailing)


def _read(method: BundledMethod, call: BundledCall) -> Any:
    try:
        return method.read(call.request)
    except DecodeError:
        raise MeshError(ErrorKind.INVALID, "The request cannot be read") from None


def _responses(ended: Iterable[_EndedCall]) -> Iterator[CarryResponse]:
    response = CarryResponse()
    size = 0
    for one in ended:
        outcome = response.outcomes.add(index=one.place)
        if one.code:
            outcome.code, outcome.status = one.code, one.content
        else:
            outcome.response = one.content
        for key, value in one.trailing:
            if isinstance(value, str):
                outcome.trailing.add(key=key, value=value)
        size += len(one.content)
        if size >= _FULL_BYTES:
            yield response
            response, size = CarryResponse(), 0
    if response.outcomes:
        yield response
