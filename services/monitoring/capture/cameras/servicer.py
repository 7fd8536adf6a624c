"""CameraService over gRPC: decode, call, encode."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from atelier.monitoring.v1 import capture_camera_service_pb2 as pb
from atelier.monitoring.v1 import health_pb2
from atelier.monitoring.v1.capture_camera_service_pb2_grpc import CameraServiceServicer

from services.monitoring.capture.cameras.convert import to_camera
from services.monitoring.capture.cameras.service import CameraDesk
from services.monitoring.capture.pages import PageWanted, write_page

Context = grpc.aio.ServicerContext[Any, Any]


class CameraServicer(CameraServiceServicer):
    """Answers callers, and the monitoring service.

    Args:
        cameras: The use cases.
        tenant: Tenant that everything belongs to.
        watcher: Tells what watches the folders.
        aggregator: Tells what gathers photos into batches.
    """

    def __init__(
        self,
        cameras: CameraDesk,
        *,
        tenant: str,
        watcher: Callable[[], health_pb2.FileWatcherStatus],
        aggregator: Callable[[], Awaitable[health_pb2.BatchAggregatorStatus]],
    ) -> None:
        self._cameras = cameras
        self._tenant = tenant
        self._watcher = watcher
        self._aggregator = aggregator

    async def ListCameras(self, request: pb.ListCamerasRequest, context: Context) -> pb.ListCamerasResponse:
        del context
        page = PageWanted(request.limit, request.offset)
        found = await self._cameras.list_page(page)
        response = pb.ListCamerasResponse(items=[to_camera(one) for one in found.items])
        write_page(response.pagination, page, found)
        return response

    async def GetCamera(self, request: pb.GetCameraRequest, context: Context) -> pb.GetCameraResponse:
        del context
        return pb.GetCameraResponse(camera=to_camera(await self._cameras.get(request.camera_id)))

    async def EnableCamera(self, request: pb.EnableCameraRequest, context: Context) -> pb.EnableCameraResponse:
        del context
        return pb.EnableCameraResponse(camera=to_camera(await self._cameras.switch(request.camera_id, enabled=True)))

    async def DisableCamera(self, request: pb.DisableCameraRequest, context: Context) -> pb.DisableCameraResponse:
        del context
        return pb.DisableCameraResponse(camera=to_camera(await self._cameras.switch(request.camera_id, enabled=False)))

    async def DeleteCamera(self, request: pb.DeleteCameraRequest, context: Context) -> pb.DeleteCameraResponse:
        del context
        await self._cameras.remove(request.camera_id)
        return pb.DeleteCameraResponse(camera_id=request.camera_id)

    async def GetCaptureState(self, request: pb.GetCaptureStateRequest, context: Context) -> pb.GetCaptureStateResponse:
        del request, context
        return pb.GetCaptureStateResponse(
            tenant=self._tenant, file_watcher=self._watcher(), batch_aggregator=await self._aggregator()
        )
