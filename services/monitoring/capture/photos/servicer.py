"""PhotoService over gRPC: decode, call, encode."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import grpc
from atelier.monitoring.v1 import capture_photo_service_pb2 as pb
from atelier.monitoring.v1.capture_photo_service_pb2_grpc import PhotoServiceServicer

from services.monitoring.capture.pages import PageWanted, write_page
from services.monitoring.capture.photos import convert
from services.monitoring.capture.photos.service import PhotoDesk
from services.monitoring.capture.runs.domain import RunRecord

Context = grpc.aio.ServicerContext[Any, Any]


class PhotoServicer(PhotoServiceServicer):
    """Answers callers.

    Args:
        photos: The use cases.
        run_of: Returns the workflow of a photo.
    """

    def __init__(self, photos: PhotoDesk, run_of: Callable[[UUID], Awaitable[RunRecord | None]]) -> None:
        self._photos = photos
        self._run_of = run_of

    async def ListPhotos(self, request: pb.ListPhotosRequest, context: Context) -> pb.ListPhotosResponse:
        del context
        page = PageWanted(request.limit, request.offset)
        found = await self._photos.list_page(convert.to_photos_wanted(request), page)
        response = pb.ListPhotosResponse(items=[convert.to_photo(one) for one in found.items])
        write_page(response.pagination, page, found)
        return response

    async def GetPhoto(self, request: pb.GetPhotoRequest, context: Context) -> pb.GetPhotoResponse:
        del context
        photo_id = UUID(request.photo_id)
        photo = convert.to_photo(*await self._photos.get(photo_id))
        run = await self._run_of(photo_id)
        if run is not None:
            photo.run.CopyFrom(convert.to_run(run))
        return pb.GetPhotoResponse(photo=photo)

    async def ListBatches(self, request: pb.ListBatchesRequest, context: Context) -> pb.ListBatchesResponse:
        del context
        page = PageWanted(request.limit, request.offset)
        found = await self._photos.list_batches(convert.to_batches_wanted(request), page)
        response = pb.ListBatchesResponse(items=[convert.to_batch(one) for one in found.items])
        write_page(response.pagination, page, found)
        return response

    async def GetBatch(self, request: pb.GetBatchRequest, context: Context) -> pb.GetBatchResponse:
        del context
        return pb.GetBatchResponse(batch=convert.to_batch(await self._photos.get_batch(UUID(request.batch_id))))
