"""Requests to providers are written down for as long as the attempt is the worker's, and never after."""

import asyncio

import pytest
from atelier.tasks.v1.service_requests_pb2 import (
    SERVICE_REQUEST_STATE_ACCEPTED,
    SERVICE_REQUEST_STATE_FAILED,
    SERVICE_REQUEST_STATE_SENDING,
    ServiceRequest,
    ServiceRequestState,
)
from atelier.tasks.v1.worker_service_pb2 import Lease

from meshkit.errors import MeshError, conflict, invalid, unavailable
from meshkit.worker.held import HeldLease
from meshkit.worker.pacing import Backoff, Pauses
from meshkit.worker.request_notes import RequestNotes
from meshkit.worker.session import WorkerSession
from tests.unit.worker.scripted import Clock, Service

OPEN = (SERVICE_REQUEST_STATE_SENDING, SERVICE_REQUEST_STATE_ACCEPTED)


class Rig:
    def __init__(self) -> None:
        self.clock = Clock()
        self.service = Service(self.clock)
        self.session = WorkerSession("s", 15.0, 5.0, 2000.0)
        self.held = HeldLease(Lease(job_id="j", attempt=2), self.session)
        self.notes = RequestNotes(self.service, Pauses(Backoff(0.1, 2.0), self.clock.sleep))

    def note(self, state: ServiceRequestState.ValueType) -> asyncio.Task[None]:
        return asyncio.create_task(self.notes.note(self.held, ServiceRequest(id="r", state=state)))

    @property
    def sent(self) -> int:
        return len(self.service.of("NoteServiceRequest"))


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_a_note_names_its_session_and_its_attempt(rig: Rig) -> None:
    await rig.note(SERVICE_REQUEST_STATE_SENDING)
    [request] = rig.service.of("NoteServiceRequest")
    assert (request.session_id, request.ref.job_id, request.ref.attempt, request.request.id) == ("s", "j", 2, "r")


async def test_a_note_is_repeated_while_the_service_is_away(rig: Rig) -> None:
    rig.service.errors["NoteServiceRequest"] = unavailable("restarts")
    noting = rig.note(SERVICE_REQUEST_STATE_ACCEPTED)
    await rig.clock.advance(9.0)
    assert not noting.done()
    assert rig.sent > 3
    rig.service.errors.clear()
    await rig.clock.advance(3.0)
    await noting


@pytest.mark.parametrize("state", OPEN)
@pytest.mark.parametrize(("reason", "why"), [("LEASE_LOST", "given_up"), ("TASK_ENDED", "ended")])
async def test_a_note_of_an_attempt_that_is_lost_cancels_the_call(
    rig: Rig, state: ServiceRequestState.ValueType, reason: str, why: str
) -> None:
    rig.service.errors["NoteServiceRequest"] = conflict("lost", reason=reason)
    noting = rig.note(state)
    with pytest.raises(asyncio.CancelledError):
        await noting
    assert rig.held.lost == why
    assert rig.sent == 1


async def test_a_call_that_is_cancelled_by_its_note_can_clean_up(rig: Rig) -> None:
    rig.service.errors["NoteServiceRequest"] = conflict("lost", reason="TASK_ENDED")
    cleaned: list[str] = []

    async def call() -> None:
        try:
            await rig.notes.note(rig.held, ServiceRequest(id="r", state=SERVICE_REQUEST_STATE_ACCEPTED))
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # to tell the provider
            cleaned.append("called off")
            raise

    running = asyncio.create_task(call())

    def stop(why: str) -> None:
        running.cancel(why)

    rig.held.on_lost(stop)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert cleaned == ["called off"]


@pytest.mark.parametrize("error", [unavailable("restarts"), conflict("over", reason="TASK_ENDED")])
async def test_the_end_of_a_request_is_told_once_where_the_attempt_is_lost(rig: Rig, error: MeshError) -> None:
    rig.held.lose("ended")
    rig.service.errors["NoteServiceRequest"] = error
    await rig.note(SERVICE_REQUEST_STATE_FAILED)
    assert rig.sent == 1


async def test_a_note_that_the_service_does_not_understand_is_a_fault_of_the_worker(rig: Rig) -> None:
    rig.service.errors["NoteServiceRequest"] = invalid("request.id", "is no UUID")
    with pytest.raises(RuntimeError, match="could not be noted"):
        await rig.note(SERVICE_REQUEST_STATE_SENDING)
    assert rig.held.lost is None
