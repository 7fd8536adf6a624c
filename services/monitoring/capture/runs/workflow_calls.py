"""The workflows service as runs need it: called with a token of the mesh, in the name of capture's tenant."""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
from pathlib import Path
from uuid import UUID

from atelier.workflows.v1 import workflow_pb2, workflows_service_pb2
from atelier.workflows.v1.workflows_service_pb2_grpc import WorkflowsServiceStub

from meshkit.channel import MeshChannel, call_metadata
from meshkit.objects import ObjectStore

_FOLDER = "capture"
_SECONDS = 30.0


class RunWorkflows:
    """Makes workflows, and asks for them.

    Args:
        channel: Channel to the workflows service.
        objects: Where files of the definition are put.
        tenant: Tenant of the workflows.
    """

    def __init__(self, channel: MeshChannel, objects: ObjectStore, tenant: str) -> None:
        self._stub = channel.stub(WorkflowsServiceStub)
        self._objects = objects
        self._tenant = tenant

    async def put(self, file: Path) -> str:
        """Put a file into storage; return its place, which follows from its content.

        Raises:
            OSError: It cannot be read.
            MeshError: The object store is away.
        """
        content = await asyncio.to_thread(file.read_bytes)
        place = f"{_FOLDER}/{hashlib.sha256(content).hexdigest()[:32]}{file.suffix.lower()}"
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        await self._objects.put(self._tenant, place, content, kind)
        return place

    async def create(self, workflow: workflow_pb2.CreateWorkflow, key: UUID) -> UUID:
        """Make a workflow and start it, or find the one that was made under this key.

        Raises:
            MeshError: `INVALID` for one that does not hold, `UNAVAILABLE` where it cannot be made now.
        """
        request = workflows_service_pb2.CreateWorkflowRequest(workflow=workflow, start=True)
        metadata = call_metadata(tenant=self._tenant, idempotency_key=f"capture-{key}")
        answer = await self._stub.CreateWorkflow(request, metadata=metadata, timeout=_SECONDS)
        return UUID(answer.workflow.id)

    async def get(self, workflow_id: UUID) -> workflow_pb2.WorkflowPublic:
        """Return a workflow as it stands.

        Raises:
            MeshError: `NOT_FOUND` where there is none, `UNAVAILABLE` where the service does not answer.
        """
        request = workflows_service_pb2.GetWorkflowRequest(workflow_id=str(workflow_id))
        answer = await self._stub.GetWorkflow(request, metadata=call_metadata(tenant=self._tenant), timeout=_SECONDS)
        return answer.workflow
