"""The OpenAPI 3.1 document of the routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from services.gateway.transcoding.routes import Route


def build_document(routes: Sequence[Route], image: FileDescriptorSet, *, version: str) -> dict[str, Any]:
    return {"openapi": "3.1.0"}
