"""The scheduler, as the marker asks it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from atelier.tasks.v1 import scaling_service_pb2 as pb
from atelier.tasks.v1.scaling_service_pb2_grpc import ScalingServiceStub

from meshkit.channel import MeshChannel
from services.monitoring.marker.domain import CordonedWorker


class SchedulersCordons:
    """Implements `services.monitoring.marker.service.Cordons`.

    Args:
        tasks: Channel to the tasks service.
    """

    def __init__(self, tasks: MeshChannel) -> None:
        self._stub = tasks.stub(ScalingServiceStub)

    async def workers(self) -> Sequence[CordonedWorker]:
        """Return the workers that are cordoned, and those that are taken for marked."""
        response = await self._stub.ListWorkerPools(pb.ListWorkerPoolsRequest())
        by_worker: dict[str, list[pb.WorkerPool]] = {}
        for pool in response.pools:
            by_worker.setdefault(pool.worker, []).append(pool)
        return [
            CordonedWorker(
                name,
                surplus=all(pool.cordoned_by == pb.CORDONED_BY_SCHEDULER for pool in pools),
                noted=any(pool.mark == pb.REMOVAL_MARK_SET for pool in pools),
                announced=any(pool.mark == pb.REMOVAL_MARK_ANNOUNCED for pool in pools),
            )
            for name, pools in by_worker.items()
        ]

    async def note(
        self, *, announced: Collection[str] = (), marked: Collection[str] = (), unmarked: Collection[str] = ()
    ) -> Collection[str]:
        """Tell of marks; return those that were announced and may be marked."""
        response = await self._stub.NoteMarks(
            pb.NoteMarksRequest(announced=announced, marked=marked, unmarked=unmarked)
        )
        return list(response.accepted)
