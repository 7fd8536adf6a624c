"""FAL_STANDARD: task types by the application of fal that a task names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atelier.tasks.v1.enums_pb2 import (
    PROVIDER_TYPE_FAL_STANDARD,
    TASK_TYPE_BACKGROUND_REMOVE,
    TASK_TYPE_EDITING,
    TASK_TYPE_EXPERIMENTAL_FAL,
    TASK_TYPE_GENERATION,
    TASK_TYPE_REFINE,
    TASK_TYPE_VIDEO_GENERATION,
    TaskType,
)
from atelier.tasks.v1.task_pb2 import CreateTask, Task

from meshkit.worker.handlers import CallHandler
from services.inference.providers.fal_clips import FalVideoHandler
from services.inference.providers.fal_cutouts import FalCutoutHandler
from services.inference.providers.fal_experimental import FalExperimentalHandler
from services.inference.providers.fal_jobs import FalJobs, settings_of, static_arguments
from services.inference.providers.fal_pictures import FalEditingHandler, FalGenerationHandler
from services.inference.providers.fal_refining import FalRefineHandler
from services.inference.providers.kit import ProviderKit


def handlers(kit: ProviderKit) -> Mapping[TaskType.ValueType, CallHandler]:
    """Return a handler for each type that it executes."""

    def named(spec: CreateTask, task: Task) -> tuple[str, Mapping[str, Any]]:
        settings = settings_of(spec, task).fal_standard
        return settings.fal_app_id, static_arguments(settings)

    jobs = FalJobs(kit, PROVIDER_TYPE_FAL_STANDARD)
    return {
        TASK_TYPE_GENERATION: FalGenerationHandler(jobs),
        TASK_TYPE_EDITING: FalEditingHandler(jobs),
        TASK_TYPE_REFINE: FalRefineHandler(jobs, named),
        TASK_TYPE_VIDEO_GENERATION: FalVideoHandler(jobs),
        TASK_TYPE_BACKGROUND_REMOVE: FalCutoutHandler(jobs),
        TASK_TYPE_EXPERIMENTAL_FAL: FalExperimentalHandler(jobs),
    }
