"""How a worker writes down its requests to providers: with the tasks service, which answers once it is committed."""

from __future__ import annotations

import asyncio

from atelier.tasks.v1.service_requests_pb2 import (
    SERVICE_REQUEST_STATE_ACCEPTED,
    SERVICE_REQUEST_STATE_SENDING,
    ServiceRequest,
)
from atelier.tasks.v1.worker_service_pb2 import NoteServiceRequestRequest

from meshkit.errors import TRANSIENT, ErrorKind, MeshError
from meshkit.logging import get_logger
from meshkit.worker.held import HeldLease
from meshkit.worker.pacing import Pauses
from meshkit.worker.session import WorkerCalls, call

_log = get_logger(__name__)

_NOTE_SECONDS = 10.0
_OPEN = (SERVICE_REQUEST_STATE_SENDING, SERVICE_REQUEST_STATE_ACCEPTED)
_ENDED = "TASK_ENDED"  # reason of the refusal


class RequestNotes:
    """Writes requests to providers down.

    Args:
        calls: The service.
        pauses: Waits between tries.
    """

    def __init__(self, calls: WorkerCalls, pauses: Pauses) -> None:
        self._calls = calls
        self._pauses = pauses

    async def note(self, held: HeldLease, request: ServiceRequest) -> None:
        """Write a request down as it stands; it is committed when this returns.

        A service that is away is asked again for as long as the attempt is this worker's. Where it is no more, the end
        of a request is told once and no refusal of it is raised, because nobody could do anything about it.

        Args:
            held: The attempt that makes the request.
            request: As it stands now.

        Raises:
            asyncio.CancelledError: The attempt is not this worker's any more.
        """
        message = NoteServiceRequestRequest(session_id=held.session.id, ref=held.ref, request=request)
        failures = 0
        while True:
            lost = held.lost is not None or held.session.lost.is_set()
            try:
                await call(self._calls.NoteServiceRequest, message, timeout=_NOTE_SECONDS)
            except MeshError as error:
                if error.kind in TRANSIENT and not lost:
                    failures += 1
                    _log.warning("request_not_noted", job_id=held.lease.job_id, why=error.kind.value, failures=failures)
                    await self._pauses.after(failures, held.session.lost)
                    continue
                if error.kind not in {*TRANSIENT, ErrorKind.CONFLICT, ErrorKind.NOT_FOUND}:
                    raise RuntimeError(f"a request to a provider could not be noted: {error.message}") from error
                _log.warning("request_of_lost_attempt", job_id=held.lease.job_id, request=request.id, why=error.reason)
                await self._lose(held, request, ended=error.reason == _ENDED)
            return

    @staticmethod
    async def _lose(held: HeldLease, request: ServiceRequest, *, ended: bool) -> None:
        if request.state not in _OPEN and held.lost is not None:
            return  # its handler is on its way out
        held.lose("ended" if ended else "given_up")
        await asyncio.sleep(0)  # losing the attempt has cancelled the call that waits here
        raise asyncio.CancelledError  # where another task of the call has asked
