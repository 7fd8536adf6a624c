"""The ages that the tasks service knows, for services that delete what is their own, and previews as they are sent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from uuid import UUID

from atelier.tasks.v1 import jobs_service_pb2, retention_pb2, retention_service_pb2
from atelier.tasks.v1.jobs_service_pb2_grpc import JobsServiceStub
from atelier.tasks.v1.retention_service_pb2_grpc import RetentionServiceStub

from meshkit.channel import MeshChannel
from meshkit.loops import Loop
from meshkit.retention import EVERYONE, PreviewLine, RetentionAges
from meshkit.task_files import named_tasks

_SECONDS = 10.0
# Well before a hold ends, after a day.
HOLD_EVERY_SECONDS = 3600.0
_MOST_HELD = 1000


class TaskHolds:
    """Has the tasks service keep the tasks whose files are named by what has not ended; each hold lasts for a day.

    Args:
        channel: Channel to it.
        requests: Gives the serialized requests of what has not ended, each with its tenant, in pieces.
    """

    def __init__(
        self, channel: MeshChannel, requests: Callable[[], AsyncIterator[Sequence[tuple[str, bytes]]]]
    ) -> None:
        self._jobs = channel.stub(JobsServiceStub)
        self._requests = requests

    async def renew(self) -> None:
        """Hold them; body of a loop."""
        held: defaultdict[str, set[UUID]] = defaultdict(set)
        async for piece in self._requests():
            for tenant, message in piece:
                if named := named_tasks(message):
                    held[tenant] |= named
        for tenant, tasks in held.items():
            ordered = sorted(tasks)
            for first in range(0, len(ordered), _MOST_HELD):
                ids = [str(one) for one in ordered[first : first + _MOST_HELD]]
                request = jobs_service_pb2.HoldTasksRequest(tenant=tenant, task_ids=ids)
                await self._jobs.HoldTasks(request, timeout=_SECONDS)

    def loop(self, name: str) -> Loop:
        """Return the loop that renews them."""
        return Loop(name, self.renew, HOLD_EVERY_SECONDS)


def asked_ages(
    channel: MeshChannel, kind: retention_pb2.RetentionKind.ValueType
) -> Callable[[], Awaitable[RetentionAges]]:
    """Return what asks the tasks service how long something is kept.

    Args:
        channel: Channel to it.
        kind: What is kept.
    """
    stub = channel.stub(RetentionServiceStub)

    async def ask() -> RetentionAges:
        request = retention_service_pb2.ListRetentionRequest(kind=kind)
        answer = await stub.ListRetention(request, timeout=_SECONDS)
        days = {one.tenant: one.days for one in answer.ages}
        return RetentionAges(days.pop(EVERYONE, 0), days)

    return ask


def to_lines(lines: Sequence[PreviewLine]) -> list[retention_pb2.RetentionPreview]:
    """Return what would be deleted, as it is sent."""
    return [
        retention_pb2.RetentionPreview(
            tenant=line.tenant,
            days=line.days,
            rows=line.estimate.rows,
            bytes=line.estimate.bytes,
            bytes_estimated=line.estimate.is_estimated,
        )
        for line in lines
    ]
