"""FAL_SHOOTIFY_REFINER: REFINE by the application that the installation, or the task, names as its refiner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_FAL_SHOOTIFY_REFINER, TASK_TYPE_REFINE, TaskType
from atelier.tasks.v1.task_pb2 import CreateTask, Task

from meshkit.worker.handlers import CallHandler
from services.inference.providers.fal_jobs import FalJobs, settings_of
from services.inference.providers.fal_refining import FalRefineHandler
from services.inference.providers.kit import ProviderKit


def handlers(kit: ProviderKit) -> Mapping[TaskType.ValueType, CallHandler]:
    """Return the handler of the one type that it executes."""

    def named(spec: CreateTask, task: Task) -> tuple[str, Mapping[str, Any]]:
        return settings_of(spec, task).fal_shootify_refiner.fal_app_id or kit.settings.fal_refiner_app, {}

    return {TASK_TYPE_REFINE: FalRefineHandler(FalJobs(kit, PROVIDER_TYPE_FAL_SHOOTIFY_REFINER), named)}
