"""What the trainer does with a job: be told what it is, carry it to its end, tell why it failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_INTERNAL
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from atelier.tasks.v1.worker_service_pb2 import AttemptRef
from atelier.training.v1.trainer_service_pb2 import BeginAttemptRequest

from meshkit.worker.handlers import CallContext, InputRef, Output, PausableContext, TaskFailed
from services.training.trainer.attempt import TrainerTools, TrainingAttempt
from services.training.trainer.service_calls import AttemptLost


class TrainingHandler:
    """Executes training jobs.

    Args:
        tools: What they are done with.
    """

    def __init__(self, tools: TrainerTools) -> None:
        self._tools = tools

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:  # noqa: ARG002 -- the handlers' protocol
        """Name no inputs: the training service knows them, not the job."""
        return ()

    async def run(self, context: CallContext) -> Output:
        """Carry an attempt to its end.

        Raises:
            TaskFailed: It failed.
            TaskCancelled: It was paused.
        """
        ref = AttemptRef(job_id=context.job_id, attempt=context.task.attempt)
        try:
            spec = await self._tools.calls.begin(BeginAttemptRequest(ref=ref))
            return await TrainingAttempt(cast("PausableContext", context), spec, self._tools).run()
        except AttemptLost as lost:
            # The tasks service refuses this end too.
            message = "The attempt is not the training's any more."
            raise TaskFailed(message, ERROR_CATEGORY_INTERNAL, retryable=True) from lost
