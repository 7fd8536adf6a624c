"""Between messages and domain values."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from atelier.monitoring.v1 import loops_pb2, system_service_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from meshkit.loops import MAX_RESTARTS, LoopEventKind, LoopState
from meshkit.moments import assign
from services.monitoring.supervision.domain import HistoryLine, LoopOnReplica, LoopOverview, Wish

_STATE = {loops_pb2.LoopStatus.Value(f"LOOP_STATUS_{state.name}"): state for state in LoopState}


def to_wishes(wishes: Sequence[Wish]) -> bytes:
    """Return wishes as they are sent to processes."""
    message = loops_pb2.LoopWishes()
    for wish in wishes:
        order = "UNSPECIFIED" if wish.order is None else wish.order.name
        message.wishes.add(
            name=wish.loop,
            stopped=wish.stopped,
            command=loops_pb2.LoopCommand.Value(f"LOOP_COMMAND_{order}"),
            revision=wish.revision,
        )
    return message.SerializeToString()


def of_report(report: loops_pb2.LoopReport) -> tuple[list[LoopOnReplica], list[HistoryLine]]:
    """Return the loops of a process, and lines of their history."""
    loops = [
        LoopOnReplica(
            one.name,
            _STATE.get(one.status, LoopState.CRASHED),
            one.restart_count,
            _moment(one.last_started_at) if one.HasField("last_started_at") else None,
            _moment(one.last_crashed_at) if one.HasField("last_crashed_at") else None,
            one.error if one.HasField("error") else None,
            one.revision,
        )
        for one in report.loops
    ]
    lines = [
        HistoryLine(
            UUID(event.event_id),
            one.name,
            _moment(event.at),
            event.attempt,
            LoopEventKind(event.kind),
            event.error if event.HasField("error") else None,
            report.replica,
        )
        for one in report.loops
        for event in one.events
    ]
    return loops, lines


def to_supervisor(
    running: bool,  # noqa: FBT001 -- a member of the answer
    loops: Sequence[LoopOverview],
    now: datetime,
) -> system_service_pb2.SupervisorOverview:
    """Return what every loop does."""
    message = system_service_pb2.SupervisorOverview(running=running, worker_count=len(loops))
    for one in loops:
        worker = message.workers.add(
            name=one.name,
            status=system_service_pb2.SupervisedStatus.Value(f"SUPERVISED_STATUS_{one.state.name}"),
            restart_count=one.restart_count,
            max_restarts=MAX_RESTARTS,
            error=one.error,
        )
        if one.started_at is not None:
            assign(worker.last_started_at, one.started_at)
        if one.crashed_at is not None:
            assign(worker.last_crashed_at, one.crashed_at)
    assign(message.timestamp, now)
    return message


def to_history(
    lines: Sequence[HistoryLine], total: int, limit: int, offset: int
) -> system_service_pb2.ListRestartsResponse:
    """Return a page of history."""
    response = system_service_pb2.ListRestartsResponse()
    for line in lines:
        item = response.items.add(
            worker_name=line.loop,
            attempt=line.attempt,
            status=system_service_pb2.RestartEventStatus.Value(f"RESTART_EVENT_STATUS_{line.kind.name}"),
            error=line.error,
        )
        assign(item.timestamp, line.at)
    page = response.pagination
    page.total, page.limit, page.offset, page.items_count = total, limit, offset, len(lines)
    page.has_more = offset + len(lines) < total
    return response


def _moment(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(UTC)
