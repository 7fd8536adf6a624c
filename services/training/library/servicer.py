"""The library over gRPC: decode, call, encode."""

from __future__ import annotations

from typing import Any

import grpc
from atelier.training.v1 import lora_service_pb2 as api
from atelier.training.v1.lora_service_pb2_grpc import LoraServiceServicer
from google.api.httpbody_pb2 import HttpBody

from meshkit.access import Caller
from services.training.library.convert import to_deletion, to_lora, to_shared_upload, to_upload
from services.training.library.domain import LoraRecord
from services.training.library.service import LoraLibrary, OfferedLora

Context = grpc.aio.ServicerContext[Any, Any]


class LibraryServicer(LoraServiceServicer):
    """Answers callers.

    Args:
        library: The use cases.
    """

    def __init__(self, library: LoraLibrary) -> None:
        self._library = library

    async def UploadLora(self, request: api.UploadLoraRequest, context: Context) -> api.UploadLoraResponse:
        del context
        record = await self._library.upload(_offered(request.file, shared=False), Caller.of_call())
        return api.UploadLoraResponse(upload=to_upload(record))

    async def UploadSharedLora(
        self, request: api.UploadSharedLoraRequest, context: Context
    ) -> api.UploadSharedLoraResponse:
        del context
        record = await self._library.upload(_offered(request.file, shared=True), Caller.of_call())
        return api.UploadSharedLoraResponse(upload=to_shared_upload(record))

    async def DeleteLora(self, request: api.DeleteLoraRequest, context: Context) -> api.DeleteLoraResponse:
        del context
        record = await self._library.delete(request.lora.partial_path, Caller.of_call())
        return api.DeleteLoraResponse(deletion=to_deletion(record))

    async def RestoreLora(self, request: api.RestoreLoraRequest, context: Context) -> api.RestoreLoraResponse:
        del context
        record = await self._library.restore(request.lora.bin_path, Caller.of_call())
        return api.RestoreLoraResponse(lora=self._shown(record))

    async def ListLoras(self, request: api.ListLorasRequest, context: Context) -> api.ListLorasResponse:
        del context
        found = await self._library.list_loras(
            Caller.of_call(),
            request.entity_type if request.HasField("entity_type") else None,
            deleted=request.deleted,
            skip=request.skip,
            limit=request.limit,
        )
        return api.ListLorasResponse(loras=[self._shown(record) for record in found])

    async def GetLora(self, request: api.GetLoraRequest, context: Context) -> api.GetLoraResponse:
        del context
        record = await self._library.get(f"{request.folder}/{request.name}", Caller.of_call())
        return api.GetLoraResponse(lora=self._shown(record))

    async def GetLoraThumbnail(
        self, request: api.GetLoraThumbnailRequest, context: Context
    ) -> api.GetLoraThumbnailResponse:
        del context
        data, content_type = await self._library.thumbnail(f"{request.folder}/{request.name}", Caller.of_call())
        return api.GetLoraThumbnailResponse(picture=HttpBody(content_type=content_type, data=data))

    def _shown(self, record: LoraRecord) -> Any:
        return to_lora(record, shared=self._library.is_shared(record))


def _offered(file: api.UploadedLora, *, shared: bool) -> OfferedLora:
    return OfferedLora(
        staged_path=file.staged_path,
        filename=file.filename,
        entity_type=file.entity_type if file.HasField("entity_type") else None,
        sha256=file.sha256,
        safe_name=file.use_safe_filename,
        shared=shared,
    )
