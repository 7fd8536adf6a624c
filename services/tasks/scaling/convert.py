"""Between domain values and the messages of scaling."""

from __future__ import annotations

from collections.abc import Sequence

from atelier.tasks.v1 import scaling_service_pb2 as pb

from meshkit.moments import assign
from services.tasks.scaling.domain import CordonedBy, RemovalMark, ScalePolicy, WorkerPool
from services.tasks.scaling.service import Demand

_BY = {
    CordonedBy.OPERATOR: pb.CORDONED_BY_OPERATOR,
    CordonedBy.SCHEDULER: pb.CORDONED_BY_SCHEDULER,
}
_MARKS = {
    RemovalMark.ANNOUNCED: pb.REMOVAL_MARK_ANNOUNCED,
    RemovalMark.SET: pb.REMOVAL_MARK_SET,
}


def to_demand(demand: Demand, policy: ScalePolicy) -> pb.GetDemandResponse:
    """Return the demand of all queues."""
    response = pb.GetDemandResponse(
        queues=[
            pb.QueueDemand(
                name=one.work.name,
                waiting=one.work.waiting,
                waiting_seconds=one.work.waiting_seconds,
                running=one.work.running,
                running_seconds=one.work.running_seconds,
                delayed=one.work.delayed,
                slots_wanted=one.slots_wanted,
                slots=one.slots,
                slots_reported=one.slots_reported,
                workers=one.workers,
                cordoned=one.cordoned,
            )
            for one in demand.queues
        ],
        drain_seconds=policy.drain_seconds,
        utilization=policy.utilization,
    )
    assign(response.timestamp, demand.at)
    return response


def to_pools(pools: Sequence[WorkerPool]) -> list[pb.WorkerPool]:
    """Return pools."""
    return [_pool(pool) for pool in pools]


def _pool(pool: WorkerPool) -> pb.WorkerPool:
    message = pb.WorkerPool(
        name=pool.name,
        worker=pool.worker,
        queues=pool.queues,
        slots=pool.slots,
        held=pool.held,
        draining=pool.draining,
    )
    if pool.mark is not None:
        message.mark = _MARKS[pool.mark]
    if pool.cordoned_by is not None:
        message.cordoned_by = _BY[pool.cordoned_by]
    if pool.cordoned_at is not None:
        assign(message.cordoned_at, pool.cordoned_at)
    return message
