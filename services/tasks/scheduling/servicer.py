"""WorkerService over gRPC: decode, call, encode."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import grpc
from atelier.tasks.v1 import worker_service_pb2, worker_service_pb2_grpc

from meshkit import auth
from meshkit.errors import ErrorKind, MeshError
from meshkit.logging import get_logger
from meshkit.loras import LORA_FOLDER
from meshkit.moments import duration_of, seconds_of
from services.tasks.api.creation import MODEL_KEY
from services.tasks.catalog import LOCAL
from services.tasks.convert import (
    CATEGORY_NAME,
    KIND_NAME,
    PROVIDER_NAME,
    TASK_TYPE_NAME,
    from_load,
    from_ref,
    from_service_request,
    to_lease,
    to_ref,
)
from services.tasks.domain import ErrorCategory, JobKind, lane_of
from services.tasks.scheduling.service import WorkerSessions
from services.tasks.usage.domain import DeviceUse

_log = get_logger(__name__)

_TAKEN = worker_service_pb2.CompletionOutcome(verdict=worker_service_pb2.COMPLETION_VERDICT_TAKEN)
_VERDICTS = {
    ErrorKind.INVALID: worker_service_pb2.COMPLETION_VERDICT_REFUSED,
    ErrorKind.CONFLICT: worker_service_pb2.COMPLETION_VERDICT_LOST,
}

Context = grpc.aio.ServicerContext[Any, Any]


class WorkerServicer(worker_service_pb2_grpc.WorkerServiceServicer):
    """Answers workers.

    Args:
        sessions: The use cases.
        ttl_seconds: Life of a session without a heartbeat.
        heartbeat_seconds: How often workers are to send one.
    """

    def __init__(self, sessions: WorkerSessions, *, ttl_seconds: float, heartbeat_seconds: float) -> None:
        self._sessions = sessions
        self._ttl = duration_of(ttl_seconds)
        self._interval = duration_of(heartbeat_seconds)

    async def OpenSession(
        self, request: worker_service_pb2.OpenSessionRequest, context: Context
    ) -> worker_service_pb2.OpenSessionResponse:
        del context
        session = await self._sessions.open(
            auth.current(),
            name=request.name,
            kind=request.kind,
            queues=list(request.queues),
            slots=request.slots,
            pairs=served_pairs(request),
        )
        return worker_service_pb2.OpenSessionResponse(
            session_id=str(session.id), lease_ttl=self._ttl, heartbeat_interval=self._interval
        )

    async def Lease(
        self, request: worker_service_pb2.LeaseRequest, context: Context
    ) -> worker_service_pb2.LeaseResponse:
        del context
        leased = await self._sessions.lease(
            auth.current(),
            UUID(request.session_id),
            sequence=request.sequence,
            max_leases=request.max_leases,
            wait_seconds=max(0.0, request.wait.ToTimedelta().total_seconds()),
            # Tasks name adapters within the library, workers hold them by their path in storage.
            warm=frozenset(path.removeprefix(f"{LORA_FOLDER}/") for path in request.warm.loras).union(
                MODEL_KEY + name for name in request.warm.models
            ),
            full_tenants=frozenset(request.full_tenants),
        )
        return worker_service_pb2.LeaseResponse(leases=[to_lease(one.record, one.requests) for one in leased])

    async def Heartbeat(
        self, request: worker_service_pb2.HeartbeatRequest, context: Context
    ) -> worker_service_pb2.HeartbeatResponse:
        del context
        give_up = await self._sessions.heartbeat(
            auth.current(),
            UUID(request.session_id),
            [from_ref(ref) for ref in request.held],
            draining=request.draining,
            load=from_load(request.load, request.warm) if request.HasField("load") else None,
        )
        return worker_service_pb2.HeartbeatResponse(
            give_up=[to_ref(ref) for ref in give_up.refs],
            ended=[to_ref(ref) for ref in give_up.ended],
            lease_ttl=self._ttl,
        )

    async def Report(
        self, request: worker_service_pb2.ReportRequest, context: Context
    ) -> worker_service_pb2.ReportResponse:
        del context
        give_up = await self._sessions.report(auth.current(), UUID(request.session_id), list(request.progress))
        return worker_service_pb2.ReportResponse(
            give_up=[to_ref(ref) for ref in give_up.refs], ended=[to_ref(ref) for ref in give_up.ended]
        )

    async def Complete(
        self, request: worker_service_pb2.CompleteRequest, context: Context
    ) -> worker_service_pb2.CompleteResponse:
        del context
        completion = worker_service_pb2.Completion(
            ref=request.ref,
            result=request.result,
            objects=request.objects,
            device_seconds=request.device_seconds,
            errors=request.errors,
            device=request.device,
            model=request.model,
        )
        [error] = await self._sessions.complete(auth.current(), UUID(request.session_id), [completion])
        if error is not None:
            raise error
        return worker_service_pb2.CompleteResponse()

    async def CompleteMany(
        self, request: worker_service_pb2.CompleteManyRequest, context: Context
    ) -> worker_service_pb2.CompleteManyResponse:
        del context
        errors = await self._sessions.complete(auth.current(), UUID(request.session_id), request.completions)
        return worker_service_pb2.CompleteManyResponse(outcomes=[_outcome(error) for error in errors])

    async def Fail(self, request: worker_service_pb2.FailRequest, context: Context) -> worker_service_pb2.FailResponse:
        del context
        requeued = await self._sessions.fail(
            auth.current(),
            UUID(request.session_id),
            from_ref(request.ref),
            message=request.message,
            category=ErrorCategory(CATEGORY_NAME.get(request.category, "INTERNAL")),
            retryable=request.retryable,
            retry_after=seconds_of(request.retry_after) if request.HasField("retry_after") else None,
            used=DeviceUse(request.device_seconds, request.device, request.model),
        )
        return worker_service_pb2.FailResponse(requeued=requeued)

    async def NoteServiceRequest(
        self, request: worker_service_pb2.NoteServiceRequestRequest, context: Context
    ) -> worker_service_pb2.NoteServiceRequestResponse:
        del context
        await self._sessions.note_service_request(
            auth.current(), UUID(request.session_id), from_ref(request.ref), from_service_request(request.request)
        )
        return worker_service_pb2.NoteServiceRequestResponse()

    async def Release(
        self, request: worker_service_pb2.ReleaseRequest, context: Context
    ) -> worker_service_pb2.ReleaseResponse:
        del context
        await self._sessions.release(auth.current(), UUID(request.session_id), [from_ref(ref) for ref in request.refs])
        return worker_service_pb2.ReleaseResponse()

    async def CloseSession(
        self, request: worker_service_pb2.CloseSessionRequest, context: Context
    ) -> worker_service_pb2.CloseSessionResponse:
        del context
        await self._sessions.close_session(auth.current(), UUID(request.session_id))
        return worker_service_pb2.CloseSessionResponse()


def served_pairs(request: worker_service_pb2.OpenSessionRequest) -> list[str]:
    """Name the pairs of a session; an older worker names types and providers, and means each with each."""
    if not request.pairs:
        providers = [PROVIDER_NAME[number] for number in request.provider_types] or [LOCAL]
        return [lane_of(TASK_TYPE_NAME[number], provider) for number in request.task_types for provider in providers]
    return [
        lane_of(
            TASK_TYPE_NAME.get(pair.task_type, ""),
            PROVIDER_NAME.get(pair.provider_type, LOCAL),
            JobKind(KIND_NAME.get(pair.job_kind, JobKind.TASK)),
        )
        for pair in request.pairs
    ]


def _outcome(error: Exception | None) -> worker_service_pb2.CompletionOutcome:
    """Return what a worker is told of one completion."""
    if error is None:
        return _TAKEN
    if not isinstance(error, MeshError):
        _log.error("completion_not_decided", exc_info=error)
        return worker_service_pb2.CompletionOutcome(verdict=worker_service_pb2.COMPLETION_VERDICT_UNDECIDED)
    verdict = _VERDICTS.get(error.kind, worker_service_pb2.COMPLETION_VERDICT_UNDECIDED)
    return worker_service_pb2.CompletionOutcome(verdict=verdict, message=error.message)
