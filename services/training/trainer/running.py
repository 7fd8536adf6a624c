"""The job in the child: train by the plan in its folder, and tell the parent of all that is done and whole.

The folder has `plan.json`, `dataset/`, and `resume/` where there is a state to go on from. Whole files are linked into
`out/`, where they are the parent's: it stores them and takes them away.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from atelier.tasks.v1.enums_pb2 import (
    ERROR_CATEGORY_RESOURCE,
    ERROR_CATEGORY_VALIDATION,
    TASK_TYPE_UNSPECIFIED,
    TaskType,
)
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.worker.handlers import InputRef, LongContext, Need, Output, TaskCancelled, TaskContext, TaskFailed
from modelkit.device import Device
from modelkit.errors import ModelErrorKind
from modelkit.training.dataset import DATASET_NAME, Dataset
from modelkit.training.errors import TrainingFailed, TrainingStopped
from modelkit.training.plan import TrainingPlan
from modelkit.training.trainer import TrainedAdapter, train
from modelkit.training.validation import BUCKETS
from modelkit.training.watching import Sample, StepReport, Stop, ValidationPoint

PLAN, DATASET_FOLDER, RESUME, OUT, RUN = "plan.json", "dataset", "resume", "out", "run"
_CATEGORIES = {
    ModelErrorKind.VALIDATION: ERROR_CATEGORY_VALIDATION,
    ModelErrorKind.RESOURCE: ERROR_CATEGORY_RESOURCE,
}


class TrainingJobHandler:
    """Executes training jobs.

    Args:
        device: Name of the device.
        threads: Processor threads of one computation; 0 leaves it to torch.
    """

    task_type: TaskType.ValueType = TASK_TYPE_UNSPECIFIED
    families: tuple[str, ...] = ()

    def __init__(self, device: str, threads: int) -> None:
        self._device = device
        self._threads = threads

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:  # noqa: ARG002 -- the handlers' protocol
        """Name no inputs: the parent has put all into the folder."""
        return ()

    def batch_key(self, spec: CreateTask, task: Task) -> Hashable | None:  # noqa: ARG002 -- the handlers' protocol
        """Never batch."""
        return None

    @property
    def device(self) -> str:
        """Name of the device that it trains on."""
        return Device.choose(self._device, self._threads).name

    def needs(self, spec: CreateTask, task: Task) -> Sequence[Need]:  # noqa: ARG002 -- the handlers' protocol
        """Name no models: a training loads its own, one part after the other."""
        return ()

    def run(
        self,
        batch: Sequence[TaskContext],
        lent: Mapping[str, Any],  # noqa: ARG002 -- the handlers' protocol
    ) -> Sequence[Output | Exception]:
        """Train."""
        [context] = batch
        return [self._trained(cast("LongContext", context))]

    def _trained(self, context: LongContext) -> Output | Exception:
        began, folder = time.monotonic(), context.folder
        watcher = JobWatcher(context, folder)
        resume = folder / RESUME
        try:
            device = Device.choose(self._device, self._threads)
            watcher.noted(f"Device: {device.name}.")
            adapter = train(
                TrainingPlan.from_json((folder / PLAN).read_text("utf-8")),
                Dataset.read(folder / DATASET_FOLDER / DATASET_NAME),
                folder=folder / RUN,
                resume=resume if resume.is_dir() else None,
                watcher=watcher,
                device=device,
            )
        except TrainingStopped:
            return TaskCancelled()
        except TrainingFailed as failed:
            category = _CATEGORIES[failed.category]
            return TaskFailed(failed.message, category, retryable=category == ERROR_CATEGORY_RESOURCE)
        watcher.finished(adapter)
        return Output(TaskResult(), (), time.monotonic() - began)


class JobWatcher:
    """Passes what the training tells on to the parent, and what the parent asks to the training.

    Args:
        context: The job.
        folder: Its folder.
    """

    def __init__(self, context: LongContext, folder: Path) -> None:
        self._context = context
        self._folder = folder
        self._puts = 0

    def stopping(self) -> Stop | None:
        """Tell whether to stop."""
        if self._context.cancelled():
            return Stop.CANCEL
        return Stop.DRAIN if self._context.paused() else None

    def wanted_samples(self) -> Sequence[str]:
        """Return prompts to draw now."""
        return [prompt for message in self._context.heard() for prompt in json.loads(message.text)]

    def cached(self, done: int, total: int) -> None:
        """Tell of pictures and captions that are encoded."""
        self._say("cached", done=done, total=total)

    def stepped(self, report: StepReport) -> None:
        """Tell of a step."""
        self._say("step", **asdict(report))
        self._context.progress(report.step, report.total)

    def validated(self, points: Sequence[ValidationPoint]) -> None:
        """Tell of losses on the fixed set."""
        losses = {_range(point.bucket): point.loss for point in points}
        if points:
            self._say("validated", step=points[0].step, losses=losses)

    def sampled(self, sample: Sample) -> None:
        """Tell of a picture."""
        name = self._put(sample.path, f"sample-{sample.step}-{sample.index}{sample.path.suffix}")
        self._say("sample", step=sample.step, index=sample.index, prompt=sample.prompt, seed=sample.seed, file=name)

    def kept_state(self, step: int, folder: Path) -> None:
        """Tell of a state."""
        files = {file.name: self._put(file, f"state-{step}-{file.name}") for file in sorted(folder.iterdir())}
        self._say("state", step=step, files=files)

    def kept_save(self, step: int, file: Path) -> None:
        """Tell of an adapter of a step in between."""
        self._say("save", step=step, file=self._put(file, f"save-{step}{file.suffix}"))

    def noted(self, line: str) -> None:
        """Tell a line for the log."""
        self._say("line", text=line)

    def finished(self, adapter: TrainedAdapter) -> None:
        """Tell of the adapter that came of it all."""
        self._say(
            "trained",
            file=self._put(adapter.file, f"adapter{adapter.file.suffix}"),
            sha256=adapter.sha256,
            size=adapter.size,
            metadata=dict(adapter.metadata),
            thumbnail=self._put(adapter.thumbnail, f"thumbnail{adapter.thumbnail.suffix}"),
        )

    def _put(self, file: Path, name: str) -> str:
        """Link a file that is whole into the parent's folder; a file is written anew there, never changed in place."""
        self._puts += 1  # at a drain the state of one step is kept twice, and the parent may be at work on the first
        target = self._folder / OUT / f"{self._puts}-{name}"
        target.parent.mkdir(exist_ok=True)
        os.link(file, target)
        return f"{OUT}/{target.name}"

    def _say(self, kind: str, **facts: Any) -> None:
        self._context.say(kind, json.dumps(facts))


def _range(bucket: int) -> str:
    return f"{bucket / BUCKETS:.2f}-{(bucket + 1) / BUCKETS:.2f}"
