"""Serves `BundleService`: calls that came in one message, each as if it had come alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atelier.mesh.v1.bundle_service_pb2 import BundledCall, BundledOutcome, CarryRequest, CarryResponse, Metadatum
from google.protobuf.message import DecodeError

from meshkit import metrics
from meshkit.errors import Kind, MeshError, invalid
from meshkit.status import DETAILS_KEY, to_status

_CALLS = metrics.histogram("rpc_bundle_calls", "Calls that came in one bundle", (), (2, 4, 8, 16, 32, 64))

MAX_CALLS = 64  # bound of CarryRequest.calls
# A response that is full goes: what is large would hold up the others.
_FULL_BYTES = 1 << 20

Answer = Callable[[Any, "CarriedContext"], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Carried:
    """A method that takes calls from bundles.

    Attributes:
        answer: Serves one call; raises `MeshError`, and nothing else.
        read: Reads a serialized request.
        write: Serializes a response.
    """

    answer: Answer
    read: Callable[[bytes], Any]
    write: Callable[[Any], bytes]


class CarriedContext:
    """What a servicer sees of a call that came in a bundle: the part of gRPC's context that servicers here use.

    Args:
        metadata: The call's metadata.
    """

    def __init__(self, metadata: Sequence[tuple[str, str]]) -> None:
        self._metadata = metadata
        self.trailing: Sequence[tuple[str, str | bytes]] = ()

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        """The call's metadata."""
        return self._metadata

    def set_trailing_metadata(self, pairs: Sequence[tuple[str, str | bytes]]) -> None:
        """Sends metadata with the answer."""
        self.trailing = pairs


class Unbundler:
    """Takes bundles apart.

    Args:
        methods: What may be called, by `/package.Service/Method`; read at each call.
    """

    def __init__(self, methods: Mapping[str, Carried]) -> None:
        self._methods = methods

    async def carry(self, request: CarryRequest) -> AsyncIterator[CarryResponse]:
        """Serves the calls of a bundle.

        Yields:
            Outcomes as they come; those that one commit brings about come together.

        Raises:
            MeshError: `INVALID` where the bundle itself is not one.
        """
        if not 1 <= len(request.calls) <= MAX_CALLS:
            raise invalid("calls", f"must have 1 to {MAX_CALLS} calls", "too_long" if request.calls else "too_short")
        _CALLS.observe(len(request.calls))
        ended: list[BundledOutcome] = []
        news = asyncio.Event()

        async def serve(index: int, call: BundledCall) -> None:
            ended.append(await self._outcome(index, call))
            news.set()

        # In a task each, for what a call notes of itself (caller, trace) must be nobody else's.
        running = [asyncio.create_task(serve(index, call)) for index, call in enumerate(request.calls)]
        left = len(running)
        try:
            while left:
                await news.wait()
                news.clear()
                ready, ended[:] = ended[:], []
                left -= len(ready)
                for part in _parts(ready):
                    yield CarryResponse(outcomes=part)
        finally:
            for task in running:
                task.cancel()

    async def _outcome(self, index: int, call: BundledCall) -> BundledOutcome:
        context = CarriedContext([(one.key, one.value) for one in call.metadata])
        try:
            method = self._methods.get(call.method)
            if method is None:
                raise MeshError(Kind.UNIMPLEMENTED, f"{call.method} takes no calls from bundles")
            response = method.write(await method.answer(_read(method, call), context))
        except MeshError as error:
            code, _, details = to_status(error)
            return BundledOutcome(
                index=index, code=code.value[0], status=dict(details)[DETAILS_KEY], trailing=_trailing(context.trailing)
            )
        return BundledOutcome(index=index, response=response, trailing=_trailing(context.trailing))


def _read(method: Carried, call: BundledCall) -> Any:
    try:
        return method.read(call.request)
    except DecodeError:
        raise MeshError(Kind.INVALID, "The request cannot be read") from None


def _trailing(pairs: Iterable[tuple[str, str | bytes]]) -> list[Metadatum]:
    return [Metadatum(key=key, value=value) for key, value in pairs if isinstance(value, str)]


def _parts(outcomes: Sequence[BundledOutcome]) -> Iterator[Sequence[BundledOutcome]]:
    part: list[BundledOutcome] = []
    size = 0
    for outcome in outcomes:
        part.append(outcome)
        size += len(outcome.response)
        if size >= _FULL_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part
