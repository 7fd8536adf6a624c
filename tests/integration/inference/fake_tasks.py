"""A `WorkerService` in the test's process, over a real socket: it leases what a test gives it and records all."""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from atelier.tasks.v1.noop_pb2 import CreateNoopTask
from atelier.tasks.v1.service_requests_pb2 import (
    SERVICE_REQUEST_STATE_ACCEPTED,
    SERVICE_REQUEST_STATE_SENDING,
    ServiceRequest,
)
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from atelier.tasks.v1.worker_service_pb2 import (
    COMPLETION_VERDICT_LOST,
    COMPLETION_VERDICT_TAKEN,
    JOB_KIND_TASK,
    AttemptRef,
    CloseSessionRequest,
    CloseSessionResponse,
    CompleteManyRequest,
    CompleteManyResponse,
    CompleteRequest,
    CompleteResponse,
    Completion,
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
    Progress,
    ReleaseRequest,
    ReleaseResponse,
    ReportRequest,
    ReportResponse,
)
from atelier.tasks.v1.worker_service_pb2 import Lease as LeasedAttempt
from atelier.tasks.v1.worker_service_pb2_grpc import WorkerServiceServicer
from google.protobuf.duration_pb2 import Duration

from meshkit.errors import ErrorKind, MeshError, conflict, not_found, unavailable

TENANT = "acme"
_OPEN = (SERVICE_REQUEST_STATE_SENDING, SERVICE_REQUEST_STATE_ACCEPTED)


class FakeSession:
    def __init__(self, request: OpenSessionRequest) -> None:
        self.request = request
        self.sequence = 0
        self.answer = LeaseResponse()
        self.active: dict[tuple[str, int], LeasedAttempt] = {}
        self.draining = False


class FakeTasksService(WorkerServiceServicer):
    def __init__(self, ttl_seconds: float = 6.0) -> None:
        self.ttl = ttl_seconds
        self.sessions: dict[str, FakeSession] = {}
        self.opened: list[OpenSessionRequest] = []
        self.closed: list[str] = []
        self.queue: deque[LeasedAttempt] = deque()
        self.completed: list[Completion] = []
        self.failed: list[FailRequest] = []
        self.released: list[tuple[str, int]] = []
        self.progress: list[Progress] = []
        self.polls: list[float] = []
        self.faults: list[str] = []  # of each heartbeat
        self.refused: list[tuple[str, int]] = []
        self.cancelled: set[str] = set()
        self.taken_over: set[str] = set()
        self.orphans: list[str] = []
        self.away = False
        self.lose_answers = 0
        self.requests: dict[str, dict[str, ServiceRequest]] = {}
        self.requeue = True
        self._changed = asyncio.Condition()

    def add(self, *, timeout_seconds: float = 0, spec: CreateTask | None = None, **noop: Any) -> str:
        job_id = str(uuid.uuid4())
        spec = spec or CreateTask(origin_instance="test", noop=CreateNoopTask(**noop))
        lease = LeasedAttempt(
            job_id=job_id,
            attempt=1,
            kind=JOB_KIND_TASK,
            queue_name="inference",
            tenant=TENANT,
            spec=spec,
            task=Task(id=job_id),
            result_prefix=f"results/{job_id}/1/",
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        if timeout_seconds:
            lease.timeout.FromMilliseconds(int(timeout_seconds * 1000))
        self.queue.append(lease)
        asyncio.get_running_loop().create_task(self._tell())
        return job_id

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, done: Callable[[], object], seconds: float = 60.0) -> None:
        async with asyncio.timeout(seconds):
            async with self._changed:
                while not done():
                    # Not everything that tests wait for is told here, so the condition is looked at again.
                    try:
                        await asyncio.wait_for(self._changed.wait(), 0.05)
                    except TimeoutError:
                        continue

    def completions(self, job_id: str) -> list[Completion]:
        return [each for each in self.completed if each.ref.job_id == job_id]

    def failures(self, job_id: str) -> list[FailRequest]:
        return [each for each in self.failed if each.ref.job_id == job_id]

    def active(self, job_ids: Iterable[str]) -> int:
        wanted = set(job_ids)
        return sum(1 for session in self.sessions.values() for job_id, _ in session.active if job_id in wanted)

    def forget_sessions(self) -> None:
        for session in self.sessions.values():
            self.queue.extend(_again(lease) for lease in session.active.values())
        self.sessions.clear()

    def _session(self, session_id: str) -> FakeSession:
        if self.away:
            raise unavailable("away")
        if session_id not in self.sessions:
            raise not_found("session", session_id)
        return self.sessions[session_id]

    async def OpenSession(self, request: OpenSessionRequest, context: Any) -> OpenSessionResponse:
        if self.away:
            raise unavailable("away")
        session_id = str(uuid.uuid4())
        self.sessions[session_id] = FakeSession(request)
        self.opened.append(request)
        return OpenSessionResponse(
            session_id=session_id, lease_ttl=_duration(self.ttl), heartbeat_interval=_duration(self.ttl / 3)
        )

    async def Lease(self, request: LeaseRequest, context: Any) -> LeaseResponse:
        self.polls.append(time.monotonic())
        session = self._session(request.session_id)
        if request.sequence == session.sequence:
            return session.answer
        end = time.monotonic() + request.wait.seconds + request.wait.nanos / 1e9
        async with self._changed:
            while not self.queue and (left := end - time.monotonic()) > 0:
                try:
                    await asyncio.wait_for(self._changed.wait(), min(left, 0.2))
                except TimeoutError:
                    self._session(request.session_id)
        self._session(request.session_id)
        leases = [self.queue.popleft() for _ in range(min(request.max_leases, len(self.queue)))]
        for lease in leases:
            noted = self.requests.get(lease.job_id, {}).values()
            lease.service_requests.extend(each for each in noted if each.state in _OPEN)
            session.active[lease.job_id, lease.attempt] = lease
        session.sequence, session.answer = request.sequence, LeaseResponse(leases=leases)
        if leases and self.lose_answers:
            self.lose_answers -= 1
            raise unavailable("the answer is lost")
        return session.answer

    async def Heartbeat(self, request: HeartbeatRequest, context: Any) -> HeartbeatResponse:
        session = self._session(request.session_id)
        session.draining = request.draining
        self.faults.append(request.load.fault)
        give_up = [
            ref
            for ref in request.held
            if (ref.job_id, ref.attempt) not in session.active or ref.job_id in self.cancelled
        ]
        return HeartbeatResponse(give_up=give_up, lease_ttl=_duration(self.ttl))

    async def Report(self, request: ReportRequest, context: Any) -> ReportResponse:
        self._session(request.session_id)
        self.progress.extend(request.progress)
        await self._tell()
        return ReportResponse()

    async def Complete(self, request: CompleteRequest, context: Any) -> CompleteResponse:
        raise AssertionError("the worker completes by CompleteMany")

    async def CompleteMany(self, request: CompleteManyRequest, context: Any) -> CompleteManyResponse:
        answer = CompleteManyResponse()
        for completion in request.completions:
            if completion.ref.job_id in self.taken_over:
                self.orphans.extend(each.path for each in completion.objects)
                answer.outcomes.add(verdict=COMPLETION_VERDICT_LOST)
                continue
            try:
                self._end(request.session_id, completion.ref)
            except MeshError as error:
                if error.kind is not ErrorKind.CONFLICT:
                    raise
                answer.outcomes.add(verdict=COMPLETION_VERDICT_LOST)
            else:
                self.completed.append(completion)
                answer.outcomes.add(verdict=COMPLETION_VERDICT_TAKEN)
        await self._tell()
        return answer

    async def Fail(self, request: FailRequest, context: Any) -> FailResponse:
        lease = self._end(request.session_id, request.ref)
        self.failed.append(request)
        if request.retryable and self.requeue:
            self.queue.append(_again(lease))
        await self._tell()
        return FailResponse(requeued=request.retryable)

    async def NoteServiceRequest(self, request: NoteServiceRequestRequest, context: Any) -> NoteServiceRequestResponse:
        session = self._session(request.session_id)
        if (request.ref.job_id, request.ref.attempt) not in session.active:
            raise conflict("the attempt is not the session's", reason="LEASE_LOST")
        noted = self.requests.setdefault(request.ref.job_id, {})
        noted.setdefault(request.request.id, ServiceRequest(attempt=request.ref.attempt)).MergeFrom(request.request)
        await self._tell()
        return NoteServiceRequestResponse()

    async def Release(self, request: ReleaseRequest, context: Any) -> ReleaseResponse:
        session = self._session(request.session_id)
        for ref in request.refs:
            self.released.append((ref.job_id, ref.attempt))
            session.active.pop((ref.job_id, ref.attempt), None)
        await self._tell()
        return ReleaseResponse()

    async def CloseSession(self, request: CloseSessionRequest, context: Any) -> CloseSessionResponse:
        self._session(request.session_id)
        del self.sessions[request.session_id]
        self.closed.append(request.session_id)
        await self._tell()
        return CloseSessionResponse()

    def _end(self, session_id: str, ref: AttemptRef) -> LeasedAttempt:
        session = self._session(session_id)
        key = (ref.job_id, ref.attempt)
        if key not in session.active or ref.job_id in self.cancelled:
            self.refused.append(key)
            raise conflict("the attempt is not the session's", reason="LEASE_LOST")
        return session.active.pop(key)


def _again(lease: LeasedAttempt) -> LeasedAttempt:
    again = LeasedAttempt()
    again.CopyFrom(lease)
    again.attempt += 1
    again.result_prefix = f"results/{lease.job_id}/{again.attempt}/"
    return again


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(int(seconds * 1000))
    return duration
