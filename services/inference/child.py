"""`python -m services.inference.child`: the process that owns the device and the models.

Started by the supervisor alone. It imports torch only where one of its handlers needs models. It answers every job,
whatever a handler does short of ending the process.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from atelier.inference.v1.child_pb2 import ChildHello
from atelier.tasks.v1.enums_pb2 import TaskType

from meshkit.children import die_with_parent
from meshkit.logging import configure, get_logger
from meshkit.worker.batch_runner import BatchRunner
from meshkit.worker.child import ChildRuntime
from meshkit.worker.handlers import TaskHandler
from services.inference.results import CHECK_FAMILY, ResultReview
from services.inference.tasktypes import load_pairs
from services.inference.tasktypes.failures import explained

if TYPE_CHECKING:
    from modelkit.residency import Models

_log = get_logger(__name__)

_NAMED = {"likeness"}  # families whose models tasks always name


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
        family_defaults: By family of models, the one that tasks get which name none.
        content_threshold: Pictures that the content check scores above it are refused; 0 checks none.
        notes: Whether pictures say how they were made.
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
    family_defaults: Mapping[str, str] = field(default_factory=dict)
    content_threshold: float = 0.0
    notes: bool = True
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
    handlers = load_pairs(settings.task_types)
    lender = _lender(settings, handlers.values())
    if lender is not None:
        _check(lender, handlers.values())
    review = ResultReview(lender, threshold=settings.content_threshold, notes=settings.notes)
    runner = BatchRunner(handlers, lender, explained, review)
    runtime = ChildRuntime(sock, execute=runner.execute, resident=runner.resident, threads=settings.threads)
    return runtime.serve(ChildHello(task_types=settings.task_types, device="cpu" if lender is None else lender.device))


def _lender(settings: ChildSettings, handlers: Iterable[TaskHandler]) -> Models | None:
    families = {family for handler in handlers for family in handler.families}
    if settings.content_threshold > 0:
        families.add(CHECK_FAMILY)
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
        defaults={name: place for name, place in settings.family_defaults.items() if name in families},
    )


def _check(models: Models, handlers: Iterable[TaskHandler]) -> None:
    """Refuse to start where every task would fail here, one after the other, that another worker might do.

    Raises:
        ModelError: No type has its default models on this machine.
    """
    drawing = [handler for handler in handlers if handler.families]
    lacking = {handler.task_type: models.missing(set(handler.families) - _NAMED) for handler in drawing}
    faults = {task_type: fault for task_type, fault in lacking.items() if fault is not None}
    if faults and len(faults) == len(drawing):
        raise next(iter(faults.values()))
    if faults:
        _log.warning("default_models_missing", task_types=[TaskType.Name(one) for one in faults])


if __name__ == "__main__":
    sys.exit(main())
