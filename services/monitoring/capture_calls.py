"""Capture as this service needs it: what the watching of folders does."""

from __future__ import annotations

from atelier.monitoring.v1 import capture_camera_service_pb2, health_pb2
from atelier.monitoring.v1.capture_camera_service_pb2_grpc import CameraServiceStub

from meshkit.access import Caller
from meshkit.channel import MeshChannel
from meshkit.errors import MeshError
from meshkit.logging import get_logger

_log = get_logger(__name__)


class CaptureFigures:
    """Calls capture.

    Args:
        channel: Channel to it.
    """

    def __init__(self, channel: MeshChannel) -> None:
        self._cameras = channel.stub(CameraServiceStub)
        self._tenant = ""

    async def write(self, pipeline: health_pb2.PipelineStatus, caller: Caller, seconds: float) -> None:
        """Write what capture does, for who may see it: callers of its tenant, and those who see every tenant's.

        Args:
            pipeline: What it is written into.
            caller: Who asks.
            seconds: How long capture may take to answer.
        """
        try:
            answer = await self._cameras.GetCaptureState(
                capture_camera_service_pb2.GetCaptureStateRequest(), timeout=seconds
            )
        except MeshError as error:
            _log.warning("capture_does_not_answer", reason=error.reason)
            if self._shown(caller):
                pipeline.file_watcher.running = False
            return
        self._tenant = answer.tenant
        if self._shown(caller):
            pipeline.file_watcher.CopyFrom(answer.file_watcher)
            pipeline.batch_aggregator.CopyFrom(answer.batch_aggregator)

    def _shown(self, caller: Caller) -> bool:
        return caller.reads_across or bool(self._tenant and caller.tenant == self._tenant)
