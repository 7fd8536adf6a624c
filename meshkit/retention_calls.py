"""The ages that the tasks service knows, for services that delete what is their own, and previews as they are sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from atelier.tasks.v1 import retention_pb2, retention_service_pb2
from atelier.tasks.v1.retention_service_pb2_grpc import RetentionServiceStub

from meshkit.channel import MeshChannel
from meshkit.retention import EVERYONE, PreviewLine, RetentionAges

_SECONDS = 10.0


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
