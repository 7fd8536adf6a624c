"""`WorkerService` made of scripted answers, and a clock that moves only when all wait."""

# ruff: noqa: ASYNC109 -- methods have the names of their RPCs, and gRPC's parameter

import asyncio
import heapq
import itertools
from typing import Any

from atelier.tasks.v1.enums_pb2 import TASK_TYPE_NOOP
from atelier.tasks.v1.worker_service_pb2 import (
    COMPLETION_VERDICT_TAKEN,
    AttemptRef,
    CloseSessionResponse,
    CompleteManyResponse,
    CompletionOutcome,
    CompletionVerdict,
    FailResponse,
    HeartbeatResponse,
    Lease,
    LeaseResponse,
    NoteServiceRequestResponse,
    OpenSessionResponse,
    ReleaseResponse,
    ReportResponse,
)
from google.protobuf.duration_pb2 import Duration

from meshkit.errors import MeshError
from meshkit.worker.ends import AttemptEnds
from meshkit.worker.held import HeldLease, HeldLeases
from meshkit.worker.leases import LeaseClient
from meshkit.worker.pacing import Backoff, Pauses
from meshkit.worker.pairs import Pair
from meshkit.worker.session import SessionProfile

TTL = 15.0
INTERVAL = 5.0


class Clock:
    """Seconds that pass only when a test lets them."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._numbers), woken))
        await woken

    async def settle(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        end = self.now + seconds
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            moment, _, woken = heapq.heappop(self._sleepers)
            self.now = max(self.now, moment)
            if not woken.done():
                woken.set_result(None)
                await self.settle()
        self.now = end
        await self.settle()


class Service:
    """Answers as the test says; a poll without an answer waits."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.calls: list[tuple[float, str, Any]] = []
        self.errors: dict[str, MeshError | None] = {}
        self.verdicts: dict[str, CompletionVerdict.ValueType] = {}
        self.give_up: list[AttemptRef] = []
        self.over: list[AttemptRef] = []
        self.sessions = itertools.count(1)
        self._leases: asyncio.Queue[LeaseResponse | MeshError] = asyncio.Queue()

    def of(self, method: str) -> list[Any]:
        return [request for _, name, request in self.calls if name == method]

    def lease(self, *attempts: tuple[str, int]) -> None:
        self._leases.put_nowait(LeaseResponse(leases=[Lease(job_id=job, attempt=attempt) for job, attempt in attempts]))

    def refuse_poll(self, error: MeshError) -> None:
        self._leases.put_nowait(error)

    def _note(self, method: str, request: Any) -> None:
        self.calls.append((self.clock.now, method, request))
        if (error := self.errors.get(method)) is not None:
            raise error

    async def OpenSession(self, request: Any, /, *, timeout: float | None = None) -> OpenSessionResponse:
        self._note("OpenSession", request)
        return OpenSessionResponse(
            session_id=f"s{next(self.sessions)}",
            lease_ttl=Duration(seconds=int(TTL)),
            heartbeat_interval=Duration(seconds=int(INTERVAL)),
        )

    async def Lease(self, request: Any, /, *, timeout: float | None = None) -> LeaseResponse:
        self._note("Lease", request)
        answer = await self._leases.get()
        if isinstance(answer, MeshError):
            raise answer
        return answer

    async def Heartbeat(self, request: Any, /, *, timeout: float | None = None) -> HeartbeatResponse:
        self._note("Heartbeat", request)
        return HeartbeatResponse(give_up=self.give_up, ended=self.over, lease_ttl=Duration(seconds=int(TTL)))

    async def Report(self, request: Any, /, *, timeout: float | None = None) -> ReportResponse:
        self._note("Report", request)
        return ReportResponse(give_up=self.give_up)

    async def CompleteMany(self, request: Any, /, *, timeout: float | None = None) -> CompleteManyResponse:
        self._note("CompleteMany", request)
        return CompleteManyResponse(
            outcomes=[
                CompletionOutcome(verdict=self.verdicts.get(each.ref.job_id, COMPLETION_VERDICT_TAKEN))
                for each in request.completions
            ]
        )

    async def Fail(self, request: Any, /, *, timeout: float | None = None) -> FailResponse:
        self._note("Fail", request)
        return FailResponse()

    async def NoteServiceRequest(self, request: Any, /, *, timeout: float | None = None) -> NoteServiceRequestResponse:
        self._note("NoteServiceRequest", request)
        return NoteServiceRequestResponse()

    async def Release(self, request: Any, /, *, timeout: float | None = None) -> ReleaseResponse:
        self._note("Release", request)
        return ReleaseResponse()

    async def CloseSession(self, request: Any, /, *, timeout: float | None = None) -> CloseSessionResponse:
        self._note("CloseSession", request)
        return CloseSessionResponse()


class Rig:
    def __init__(self) -> None:
        self.clock = Clock()
        self.service = Service(self.clock)
        self.accepted: list[HeldLease] = []
        self.room = 4
        self.full: list[str] = []
        self.asked = asyncio.Event()
        self.heartbeat_now = asyncio.Event()
        pauses = Pauses(Backoff(0.1, 5.0), self.clock.sleep)
        self.held = HeldLeases(self.asked)
        self.ends = AttemptEnds(self.service, self.held, pauses)
        self.client = LeaseClient(
            self.service,
            SessionProfile("w", "local", ("inference",), 2, (Pair(TASK_TYPE_NOOP),)),
            self.held,
            self.ends,
            capacity=lambda: self.room - len(self.accepted),
            accept=self.accepted.append,
            room=self.asked,
            heartbeat_now=self.heartbeat_now,
            full_tenants=lambda: self.full,
            pauses=pauses,
            clock=self.clock,
        )

    async def holding(self, *attempts: tuple[str, int]) -> list[HeldLease]:
        self.client.start()
        await self.clock.advance(0.1)  # an idle service: the first poll waits for its work
        self.service.lease(*attempts)
        await self.clock.settle()
        assert [held.key for held in self.accepted] == list(attempts)
        return self.accepted


async def during(rig: Rig, awaitable: Any, seconds: float) -> Any:
    task = asyncio.ensure_future(awaitable)
    await rig.clock.advance(seconds)
    return task.result() if task.done() else task
