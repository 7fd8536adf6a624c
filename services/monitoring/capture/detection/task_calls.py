"""The tasks service as detection needs it: called with a token of the mesh, in the name of capture's tenant."""

from __future__ import annotations

from uuid import UUID

from atelier.tasks.v1 import photo_detection_pb2, task_pb2, tasks_service_pb2
from atelier.tasks.v1.tasks_service_pb2_grpc import TasksServiceStub

from meshkit.channel import MeshChannel, call_metadata
from meshkit.objects import ObjectStore
from meshkit.staging import STAGING_FOLDER, STAGING_SCHEME

_SECONDS = 15.0
# A large photo waits for its turn to be decoded, and is decoded, before its task is made; both may take 30 s.
_CREATE_SECONDS = 90.0


class DetectionTasks:
    """Has tasks look at photos.

    Args:
        channel: Channel to the tasks service.
        objects: Where photos are put for it.
        tenant: Tenant of the tasks.
        instance: Their `origin_instance`.
        zone: Their `origin_zone`; empty for none.
    """

    def __init__(self, channel: MeshChannel, objects: ObjectStore, *, tenant: str, instance: str, zone: str) -> None:
        self._stub = channel.stub(TasksServiceStub)
        self._objects = objects
        self._tenant = tenant
        self._instance = instance
        self._zone = zone

    async def create(self, photo_id: UUID, content: bytes, reference: str) -> task_pb2.Task:
        """Make the task of a photo, or find that it exists: it bears the photo's identifier.

        Args:
            photo_id: The photo.
            content: Its file.
            reference: `origin_reference` of the task.

        Raises:
            MeshError: `INVALID` for what is no picture that can be looked at, `UNAVAILABLE` where it cannot be made.
        """
        # The name is that of the photo, so that what is put again takes the place of what was put before.
        path = f"{STAGING_FOLDER}/capture-{photo_id}"
        await self._objects.put(self._tenant, path, content)
        task = task_pb2.CreateTask(
            origin_instance=self._instance,
            origin_zone=self._zone or None,
            origin_reference=reference,
            photo_detection=photo_detection_pb2.CreatePhotoDetectionTask(input_image=STAGING_SCHEME + path),
        )
        request = tasks_service_pb2.CreateTaskRequest(task=task, task_id=str(photo_id))
        answer = await self._stub.CreateTask(
            request, metadata=call_metadata(tenant=self._tenant, idempotency_key=str(photo_id)), timeout=_CREATE_SECONDS
        )
        return answer.task

    async def get(self, photo_id: UUID) -> task_pb2.Task:
        """Return the task of a photo as it stands.

        Raises:
            MeshError: `NOT_FOUND` where there is none; `UNAVAILABLE` where the service does not answer.
        """
        request = tasks_service_pb2.GetTaskRequest(task_id=str(photo_id))
        answer = await self._stub.GetTask(request, metadata=call_metadata(tenant=self._tenant), timeout=_SECONDS)
        return answer.task
