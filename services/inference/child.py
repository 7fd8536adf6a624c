"""`python -m services.inference.child`: the process that owns the device and the models.

Started by the supervisor alone. It imports torch only where one of its handlers needs models. It answers every job,
whatever a handler does short of ending the process.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

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
from meshkit.catalog import type_of_detail
from meshkit.errors import ErrorKind, MeshError
from meshkit.logging import configure, get_logger
from meshkit.worker.child import ChildRuntime, JobContext, die_with_parent
from meshkit.worker.handlers import Lender, Need, Output, TaskCancelled, TaskFailed, TaskHandler
from services.inference.tasktypes import load_handlers
from services.inference.tasktypes.failures import explained

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
    """Executes batches: finds the handler, lends it the models it needs, turns whatever comes of it into outcomes.

    Args:
        handlers: One handler a type.
        lender: Keeps the models; None where no handler needs any.
        explain: Turns an exception of the models' library into a `TaskFailed`; returns any other as it is.
    """

    def __init__(
        self,
        handlers: Mapping[TaskType.ValueType, TaskHandler],
        lender: Lender | None = None,
        explain: Callable[[Exception], Exception] = lambda error: error,
    ) -> None:
        self._handlers = handlers
        self._lender = lender
        self._explain = explain

    def execute(self, batch: Sequence[JobContext]) -> list[ChildDone]:
        """Run one batch of one type; one outcome a job."""
        kind = type_of_detail(batch[0].spec.WhichOneof("detail"))
        handler = None if kind is None else self._handlers.get(kind.number)
        if handler is None:
            missing = ChildFailure(message="This worker does not execute the type.", category=ERROR_CATEGORY_INTERNAL)
            return [ChildDone(failure=missing) for _ in batch]
        with tracing.activated(tracing.begin(batch[0].traceparent)):
            return [self._encode(outcome) for outcome in self._run(handler, batch)]

    def resident(self) -> ChildResident | None:
        """Return what is in memory, or None where nothing ever is."""
        if self._lender is None:
            return None
        return ChildResident(
            models=[
                ResidentModel(
                    name=model.name,
                    family=model.family,
                    bytes=model.bytes,
                    loras=model.loras,
                    pinned=model.pins > 0,
                )
                for model in self._lender.resident()
            ]
        )

    def _run(self, handler: TaskHandler, batch: Sequence[JobContext]) -> list[Output | Exception]:
        """Run the members whose needs are known; the others fail by themselves."""
        failures: dict[int, Exception] = {}
        needs: list[Need] = []
        for index, context in enumerate(batch):
            try:
                needs += handler.needs(context.spec, context.task)
            except Exception as error:
                failures[index] = error
        able = [context for index, context in enumerate(batch) if index not in failures]
        outcomes = iter(self._lent(handler, able, needs))
        return [failures[index] if index in failures else next(outcomes) for index in range(len(batch))]

    def _lent(
        self, handler: TaskHandler, batch: Sequence[JobContext], needs: Iterable[Need]
    ) -> Sequence[Output | Exception]:
        if not batch:
            return []
        try:
            with self._lend(tuple(dict.fromkeys(needs))) as lent:
                outcomes = handler.run(batch, lent)
            if len(outcomes) != len(batch):
                raise RuntimeError(f"{len(outcomes)} outcomes for {len(batch)} tasks")
        except Exception as error:  # a handler's fault ends its batch, never the process
            return [error] * len(batch)
        return outcomes

    def _lend(self, needs: Sequence[Need]) -> AbstractContextManager[Mapping[str, Any]]:
        if not needs:
            return nullcontext({})
        if self._lender is None:
            raise RuntimeError("a handler needs a model and names no families")
        return self._lender.lend(needs)

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
        return ChildDone(failure=self._failure(self._explain(outcome)))

    def _failure(self, error: Exception) -> ChildFailure:
        if exhausted := _out_of_memory(error):
            _log.warning("out_of_memory", exc_info=error)
            if self._lender is not None:
                self._lender.free()
        if isinstance(error, TaskFailed):
            return ChildFailure(message=error.message, category=error.category, retryable=error.retryable)
        if isinstance(error, MeshError) and error.kind is ErrorKind.INVALID:
            return ChildFailure(message=error.message, category=ERROR_CATEGORY_VALIDATION)
        if exhausted:
            return ChildFailure(
                message="The device ran out of memory.", category=ERROR_CATEGORY_RESOURCE, retryable=True
            )
        error_id = secrets.token_hex(8)
        _log.error("task_crashed", error_id=error_id, exc_info=error)
        message = f"The worker failed to execute the task (error {error_id})."
        return ChildFailure(message=message, category=ERROR_CATEGORY_INTERNAL, retryable=True)


def _out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception, or one that caused it, says that memory ran out.

    torch's class is told by its name, because it is not imported here.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":
            return True
        cause = cause.__cause__
    return False


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
    handlers = load_handlers(settings.task_types)
    lender = _lender(settings, handlers.values())
    runner = BatchRunner(handlers, lender, explained)
    runtime = ChildRuntime(sock, execute=runner.execute, resident=runner.resident, threads=settings.threads)
    return runtime.serve(ChildHello(task_types=settings.task_types, device="cpu" if lender is None else lender.device))


def _lender(settings: ChildSettings, handlers: Iterable[TaskHandler]) -> Lender | None:
    families = {family for handler in handlers for family in handler.families}
    if not families:
        return None
    from modelkit.residency import Models  # noqa: PLC0415 -- torch is imported in the child alone, and late

    return Models(
        settings.model,
        settings.device,
        settings.model_budget_bytes,
        threads=settings.torch_threads,
        extra_models=settings.extra_models,
        allow_download=settings.model_download,
        families=sorted(families),
    )


if __name__ == "__main__":
    sys.exit(main())
