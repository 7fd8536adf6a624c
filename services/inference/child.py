"""`python -m services.inference.child`: the process that owns the device and the models.

Started by the supervisor alone. It imports torch only where one of its task types needs models, and answers every
job, whatever a handler does short of ending the process.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, cast

from atelier.inference.v1.child_pb2 import (
    ChildCancelled,
    ChildDone,
    ChildFailure,
    ChildFile,
    ChildHello,
    ChildOutput,
    ChildResident,
)
from atelier.inference.v1.inference_service_pb2 import ResidentModel
from atelier.tasks.v1.enums_pb2 import (
    ERROR_CATEGORY_INTERNAL,
    ERROR_CATEGORY_RESOURCE,
    ERROR_CATEGORY_VALIDATION,
    TaskType,
)

from meshkit import tracing
from meshkit.errors import ErrorKind, MeshError
from meshkit.logging import configure, get_logger
from meshkit.worker.child import ChildRuntime, JobContext, die_with_parent
from meshkit.worker.handlers import Output, TaskCancelled, TaskFailed, TaskHandler
from services.inference.tasktypes import WITHOUT_MODELS, load_handlers, type_of_detail

if TYPE_CHECKING:
    from modelkit.residency import Models

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ChildSettings:
    """What the parent tells its child on the command line.

    Attributes:
        task_types: Numbers of the types to execute.
        threads: Batches that run at once.
        model: Folder or hub name of the default model.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        model_budget_bytes: Memory for models; 0 for a share of the device's.
        torch_threads: Processor threads of one computation; 0 leaves it to torch.
        extra_models: Models that tasks may name beside the default.
        model_download: Whether a hub name may be downloaded.
        log_level: Least level that is logged.
    """

    task_types: tuple[TaskType.ValueType, ...]
    threads: int
    model: str
    device: str
    model_budget_bytes: int
    torch_threads: int = 0
    extra_models: tuple[str, ...] = ()
    model_download: bool = False
    log_level: str = "info"

    def command(self) -> list[str]:
        """Return the child's command, to which the supervisor adds its socket."""
        return [sys.executable, "-m", __spec__.name if __name__ == "__main__" else __name__, json.dumps(asdict(self))]

    @classmethod
    def parse(cls, text: str) -> ChildSettings:
        """Read what `command` wrote."""
        values = json.loads(text)
        values["task_types"] = tuple(values["task_types"])
        values["extra_models"] = tuple(values["extra_models"])
        return cls(**values)


class BatchRunner:
    """Executes batches: finds the handler, turns whatever comes of it into outcomes.

    Args:
        handlers: One handler a type.
        models: What is resident; None for types that need none.
    """

    def __init__(self, handlers: Mapping[TaskType.ValueType, TaskHandler], models: Models | None) -> None:
        self._handlers = handlers
        self._models = models

    def execute(self, batch: Sequence[JobContext]) -> list[ChildDone]:
        """Run one batch of one type; one outcome a job."""
        kind = type_of_detail(batch[0].spec.WhichOneof("detail"))
        handler = None if kind is None else self._handlers.get(kind)
        if handler is None:
            missing = ChildFailure(message="This worker does not execute the type.", category=ERROR_CATEGORY_INTERNAL)
            return [ChildDone(failure=missing) for _ in batch]
        with tracing.activated(tracing.begin(batch[0].traceparent)):
            try:
                outcomes = handler.run(batch, cast("Models", self._models))
                if len(outcomes) != len(batch):
                    raise RuntimeError(f"{len(outcomes)} outcomes for {len(batch)} tasks")
            except Exception as error:  # a handler's fault ends its batch, never the process
                outcomes = [error] * len(batch)
            return [self._encode(outcome) for outcome in outcomes]

    def resident(self) -> ChildResident | None:
        """Return what is in memory, or None where nothing ever is."""
        if self._models is None:
            return None
        return ChildResident(
            models=[
                ResidentModel(name=model.name, bytes=model.bytes, loras=model.loras, pinned=model.pins > 0)
                for model in self._models.resident()
            ]
        )

    def _encode(self, outcome: Output | Exception) -> ChildDone:
        if isinstance(outcome, Output):
            files = [
                ChildFile(name=file.name, content_type=file.content_type, field=file.field or "")
                for file in outcome.files
            ]
            return ChildDone(
                output=ChildOutput(result=outcome.result, files=files), device_seconds=outcome.device_seconds
            )
        if isinstance(outcome, TaskCancelled):
            return ChildDone(cancelled=ChildCancelled())
        return ChildDone(failure=self._failure(outcome))

    def _failure(self, error: Exception) -> ChildFailure:
        if isinstance(error, TaskFailed):
            return ChildFailure(message=error.message, category=error.category, retryable=error.retryable)
        if isinstance(error, MeshError) and error.kind is ErrorKind.INVALID:
            return ChildFailure(message=error.message, category=ERROR_CATEGORY_VALIDATION)
        # torch's own class is not imported here; it is told by its name, on the CPU by MemoryError.
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            _log.warning("out_of_memory", exc_info=error)
            if self._models is not None:
                self._models.free()
            return ChildFailure(
                message="The device ran out of memory.", category=ERROR_CATEGORY_RESOURCE, retryable=True
            )
        error_id = secrets.token_hex(8)
        _log.error("task_crashed", error_id=error_id, exc_info=error)
        message = f"The worker failed to execute the task (error {error_id})."
        return ChildFailure(message=message, category=ERROR_CATEGORY_INTERNAL, retryable=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Work until the supervisor says stop; returns the exit status."""
    parser = argparse.ArgumentParser(description="Executes tasks for a worker, which starts it.")
    parser.add_argument("settings", type=ChildSettings.parse)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    settings: ChildSettings = options.settings
    configure("inference-child", settings.log_level)
    sock = socket.socket(fileno=options.fd)
    os.set_inheritable(options.fd, False)  # noqa: FBT003 -- os's own signature
    models = _models(settings)
    bench = BatchRunner(load_handlers(settings.task_types), models)
    runtime = ChildRuntime(sock, execute=bench.execute, resident=bench.resident, threads=settings.threads)
    return runtime.serve(ChildHello(task_types=settings.task_types, device="cpu" if models is None else models.device))


def _models(settings: ChildSettings) -> Models | None:
    if WITHOUT_MODELS.issuperset(settings.task_types):
        return None
    from modelkit.residency import Models  # noqa: PLC0415 -- torch is imported in the child alone, and late

    return Models(
        settings.model,
        settings.device,
        settings.model_budget_bytes,
        threads=settings.torch_threads,
        extra_models=settings.extra_models,
        allow_download=settings.model_download,
    )


if __name__ == "__main__":
    sys.exit(main())
