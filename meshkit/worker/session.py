"""What a worker knows of its session with the tasks service, and which calls it makes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import grpc
from atelier.tasks.v1.worker_service_pb2 import (
    CloseSessionRequest,
    CloseSessionResponse,
    CompleteManyRequest,
    CompleteManyResponse,
    FailRequest,
    FailResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    LeaseRequest,
    LeaseResponse,
    NoteServiceRequestRequest,
    NoteServiceRequestResponse,
    OpenSessionRequest,
    OpenSessionResponse,
    ReleaseRequest,
    ReleaseResponse,
    ReportRequest,
    ReportResponse,
)

from meshkit.status import from_rpc_error
from meshkit.worker.pairs import Pair

_RequestT_contra = TypeVar("_RequestT_contra", contravariant=True)
_ResponseT_co = TypeVar("_ResponseT_co", covariant=True)
_RequestT = TypeVar("_RequestT")
_ResponseT = TypeVar("_ResponseT")


class UnaryMethod(Protocol[_RequestT_contra, _ResponseT_co]):
    """One unary RPC, as generated stubs have it."""

    def __call__(self, request: _RequestT_contra, /, *, timeout: float | None = None) -> Awaitable[_ResponseT_co]:
        """Send the request."""
        ...


class WorkerCalls(Protocol):
    """The RPCs of `WorkerService`; the generated stub is one."""

    @property
    def OpenSession(self) -> UnaryMethod[OpenSessionRequest, OpenSessionResponse]: ...
    @property
    def Lease(self) -> UnaryMethod[LeaseRequest, LeaseResponse]: ...
    @property
    def Heartbeat(self) -> UnaryMethod[HeartbeatRequest, HeartbeatResponse]: ...
    @property
    def Report(self) -> UnaryMethod[ReportRequest, ReportResponse]: ...
    @property
    def CompleteMany(self) -> UnaryMethod[CompleteManyRequest, CompleteManyResponse]: ...
    @property
    def Fail(self) -> UnaryMethod[FailRequest, FailResponse]: ...
    @property
    def NoteServiceRequest(self) -> UnaryMethod[NoteServiceRequestRequest, NoteServiceRequestResponse]: ...
    @property
    def Release(self) -> UnaryMethod[ReleaseRequest, ReleaseResponse]: ...
    @property
    def CloseSession(self) -> UnaryMethod[CloseSessionRequest, CloseSessionResponse]: ...


@dataclass(frozen=True, slots=True)
class SessionProfile:
    """What a worker says of itself when it opens a session.

    Attributes:
        name: Unique while it lives.
        kind: `local` or `provider`.
        queues: Queues it serves.
        slots: Attempts it runs at once.
        pairs: What it runs.
    """

    name: str
    kind: str
    queues: tuple[str, ...]
    slots: int
    pairs: tuple[Pair, ...]


@dataclass(slots=True, eq=False)
class WorkerSession:
    """One session, as the worker knows it.

    Attributes:
        id: Its identifier.
        ttl: Seconds that leases live after a heartbeat.
        interval: Seconds between heartbeats.
        alive_until: When, by the worker's clock, its leases are to be taken as lost.
        answered: Number of the last poll that was answered.
        lost: Set once it is of no more use.
    """

    id: str
    ttl: float
    interval: float
    alive_until: float
    answered: int = 0
    lost: asyncio.Event = field(default_factory=asyncio.Event)


async def call(
    method: UnaryMethod[_RequestT, _ResponseT],
    request: _RequestT,
    *,
    timeout: float,  # noqa: ASYNC109 -- gRPC's own
) -> _ResponseT:
    """Make a call.

    Raises:
        MeshError: What the service, or the way to it, says.
    """
    try:
        return await method(request, timeout=timeout)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
