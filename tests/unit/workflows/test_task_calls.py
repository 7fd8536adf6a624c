"""Calls of steps: what names its own identifier is repeated at another replica, not left to the reconciler."""

from typing import Any
from uuid import uuid4

from atelier.tasks.v1.task_pb2 import CreateTask
from atelier.training.v1.training_pb2 import CreateTraining

from meshkit.errors import unavailable
from services.workflows.task_calls import TaskCalls
from services.workflows.training_calls import TrainingCalls


class Channel:
    """A channel whose first call meets a replica that is lost."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def stub(self, _stub: Any) -> "Channel":
        return self

    async def _create(self, request: Any, **_more: Any) -> None:
        self.requests.append(request)
        if len(self.requests) == 1:
            raise unavailable("The replica stands still")

    CreateTask = CreateTraining = _create


async def test_the_task_of_a_step_is_made_at_another_replica() -> None:
    channel: Any = Channel()
    task_id, workflow_id = uuid4(), uuid4()
    await TaskCalls(channel, catalog_ttl_seconds=1).create(CreateTask(), task_id, workflow_id, "acme")
    first, second = channel.requests
    assert first == second
    assert second.task_id == str(task_id)


async def test_the_training_of_a_step_is_made_at_another_replica() -> None:
    channel: Any = Channel()
    training_id = uuid4()
    await TrainingCalls(channel).create(CreateTraining(), training_id, "acme")
    first, second = channel.requests
    assert first == second
    assert second.training_id == str(training_id)
