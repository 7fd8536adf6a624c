"""One attempt at a training: from its pictures, or from where an earlier attempt has stopped, to its adapter."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from atelier.inference.v1.child_pb2 import ChildDone, ChildJob, ChildMessage, ChildProgress
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_INTERNAL, ERROR_CATEGORY_RESOURCE, ERROR_CATEGORY_VALIDATION
from atelier.tasks.v1.task_pb2 import Task, TaskResult
from atelier.tasks.v1.worker_service_pb2 import JOB_KIND_TRAINING, AttemptRef
from atelier.training.v1.trainer_service_pb2 import (
    FinishedAdapter,
    FinishTrainingRequest,
    NoteDatasetRequest,
    NoteSampleRequest,
    NoteSaveRequest,
    NoteStateRequest,
    ReportStageRequest,
    TrainingSpec,
)

from meshkit import tracing
from meshkit.errors import MeshError
from meshkit.logging import get_logger
from meshkit.objects import ObjectStore
from meshkit.worker.handlers import Output, PausableContext, TaskCancelled, TaskFailed, WorkerUnfit
from meshkit.worker.inputs import Inputs
from meshkit.worker.job_process import JobProcess
from meshkit.worker.preparer import failed_input
from meshkit.worker.supervisor import ChildLost, ChildNotStarted
from modelkit.training.errors import TrainingFailed
from services.training.trainer.base_models import TrainableModel, TrainableModels
from services.training.trainer.config import TrainerSettings
from services.training.trainer.dataset.domain import DatasetFailed, DatasetRefused, StageReport
from services.training.trainer.dataset.making import CaptionWriter, make_dataset
from services.training.trainer.dataset.manifest import MANIFEST
from services.training.trainer.keeping import Keeping, WholeFile, WholeThing
from services.training.trainer.leftovers import numbered, remove_leftovers
from services.training.trainer.planning import dataset_request, training_plan
from services.training.trainer.prepared import ObjectMissing, bring_back, download, files_of, images_of, rejects_of
from services.training.trainer.service_calls import TrainerCalls
from services.training.trainer.telling import StepReports

_log = get_logger(__name__)
_T = TypeVar("_T")

PLAN, DATASET_FOLDER, RESUME = "plan.json", "dataset", "resume"
_PNG, _JPEG = "image/png", "image/jpeg"


@dataclass(frozen=True, slots=True)
class TrainerTools:
    """What every attempt works with.

    Attributes:
        settings: The trainer's settings.
        calls: The training service.
        objects: The store.
        inputs: Brings pictures in.
        models: The models that are trained here.
        captions: Describes pictures; the mesh's own describer does where None.
        process: Makes the process that trains.
    """

    settings: TrainerSettings
    calls: TrainerCalls
    objects: ObjectStore
    inputs: Inputs
    models: TrainableModels
    captions: CaptionWriter | None
    process: Callable[[], JobProcess]


class TrainingAttempt:
    """Carries one attempt.

    Args:
        context: The attempt.
        spec: What to do.
        tools: What it is done with.
    """

    def __init__(self, context: PausableContext, spec: TrainingSpec, tools: TrainerTools) -> None:
        self._context = context
        self._spec = spec
        self._tools = tools
        self._folder = context.folder
        self._ref = AttemptRef(job_id=context.job_id, attempt=context.task.attempt)
        self._process = tools.process()
        self._reports = StepReports(tools.calls, self._ref, self._draw)
        self._keeping = Keeping(tools.objects, spec.tenant)
        self._paused = asyncio.Event()
        self._prepared = asyncio.Event()
        self._unnoted: NoteDatasetRequest | None = None
        self._trained: Mapping[str, Any] | None = None
        self._sample_folder = f"{spec.folder}samples/"

    async def run(self) -> Output:
        """Bring the training to its end.

        Raises:
            TaskFailed: It failed.
            TaskCancelled: It was paused; its newest state is stored.
            AttemptLost: It is another attempt's, or has ended.
        """
        began = time.monotonic()
        self._context.on_pause(self._pause)
        try:
            await self._unless_paused(self._prepare())
            done = await self._train()
        except BaseException:
            # Also where the attempt is cancelled: what was stored and never told of is nobody's.
            await asyncio.shield(self._keeping.discard(ended=self._context.called_off))
            raise
        kind = done.WhichOneof("outcome")
        if kind == "failure":
            raise TaskFailed(done.failure.message, done.failure.category, done.failure.retryable)
        if kind == "cancelled":
            raise TaskCancelled
        await self._finish()
        return Output(TaskResult(), (), time.monotonic() - began)

    # Before the first step

    async def _prepare(self) -> None:
        spec, tools = self._spec, self._tools
        base = await tools.models.find(spec.training.base_model_path)
        await remove_leftovers(tools.objects, spec, self._ref.attempt)
        dataset = self._folder / DATASET_FOLDER
        if not (spec.HasField("dataset_manifest_path") and await self._found(self._bring_dataset(dataset), dataset)):
            await self._make_dataset(base, dataset)
        start_from, resume = None, self._folder / RESUME
        if spec.HasField("resume") and await self._found(self._bring_state(resume), resume):
            _log.info("training_resumes", job_id=self._ref.job_id, step=spec.resume.step)
        elif spec.HasField("start_from_path"):
            start_from = self._folder / "start.safetensors"
            await download(tools.objects, spec.start_from_tenant or spec.tenant, spec.start_from_path, start_from)
        try:
            plan = training_plan(spec, base, tools.settings, start_from)
        except TrainingFailed as failed:
            raise TaskFailed(failed.message, ERROR_CATEGORY_VALIDATION, retryable=False) from failed
        (self._folder / PLAN).write_text(plan.to_json(), "utf-8")

    async def _bring_dataset(self, dataset: Path) -> None:
        await bring_back(self._tools.objects, self._spec.tenant, self._spec.dataset_manifest_path, dataset)

    async def _bring_state(self, resume: Path) -> None:
        for path in self._spec.resume.objects:
            await download(self._tools.objects, self._spec.tenant, path, resume / path.rpartition("/")[2])

    async def _found(self, work: Awaitable[None], folder: Path) -> bool:
        """Tell whether what an earlier attempt has stored is still there: a restored database may name more.

        Without it, the attempt does again what that one has done.
        """
        try:
            await work
        except ObjectMissing:
            part = "state" if folder.name == RESUME else "dataset"
            _log.warning("training_object_missing", job_id=self._ref.job_id, part=part)
            self._reports.noted(f"The {part} of an earlier attempt is not in the store any more; it is made anew.")
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            return False
        return True

    async def _make_dataset(self, base: TrainableModel, local: Path) -> None:
        spec, tools = self._spec, self._tools
        try:
            made = await _ungrouped(
                make_dataset(
                    dataset_request(spec, base, tools.settings),
                    local,
                    tenant=spec.tenant,
                    inputs=tools.inputs,
                    report=self._staged,
                    captions=tools.captions,
                )
            )
        except DatasetRefused as refused:
            raise TaskFailed(refused.message, ERROR_CATEGORY_VALIDATION, retryable=False) from refused
        except DatasetFailed as failed:
            raise TaskFailed(failed.message, ERROR_CATEGORY_RESOURCE, retryable=True) from failed
        except MeshError as error:
            raise failed_input(error) from error
        folder = f"{spec.folder}dataset/{self._ref.attempt}/"
        self._unnoted = NoteDatasetRequest(
            ref=self._ref,
            manifest_path=folder + MANIFEST,
            images=images_of(local, folder),
            rejects=rejects_of(made.rejects),
        )
        for file in files_of(made.files, local, folder):
            await self._keeping.put(file)

    async def _staged(self, report: StageReport) -> None:
        await self._tools.calls.stage(
            ReportStageRequest(
                ref=self._ref,
                stage=report.stage,
                processed_files=report.processed,
                total_files=report.total,
                rejects=rejects_of(report.rejects),
            )
        )

    async def _note_dataset(self) -> None:
        """Tell that the dataset is stored, once: no attempt prepares the pictures again. Steps are told of after it."""
        if self._unnoted is not None:
            request, self._unnoted = self._unnoted, None
            await self._keeping.told(self._tools.calls.dataset(request))
        self._prepared.set()

    async def _tell_steps(self) -> None:
        await self._prepared.wait()
        await self._reports.run()

    # The steps

    async def _train(self) -> ChildDone:
        """Train in the child, and store what it makes meanwhile."""
        training = asyncio.ensure_future(self._run_child())
        helpers = [asyncio.ensure_future(self._tell_steps()), asyncio.ensure_future(self._keeping.run())]
        try:
            await asyncio.wait({training, *helpers}, return_when=asyncio.FIRST_COMPLETED)
            for helper in helpers:
                if helper.done():
                    helper.result()  # neither ends by itself but by an error
            try:
                return await training
            finally:
                # Also after a lost child: what was whole before is not lost with it.
                if training.done() and not training.cancelled():
                    await self._note_dataset()
                    await self._reports.flush()
                    self._keeping.close()
                    await helpers[1]
        finally:
            for task in (training, *helpers):
                task.cancel()
            await asyncio.gather(training, *helpers, return_exceptions=True)

    async def _run_child(self) -> ChildDone:
        job = ChildJob(
            job_id=self._ref.job_id,
            kind=JOB_KIND_TRAINING,
            task=Task(id=self._ref.job_id, attempt=self._ref.attempt),
            folder=str(self._folder),
        )
        if (trace := tracing.current()) is not None:
            job.traceparent = trace.traceparent

        def progressed(report: ChildProgress) -> None:
            self._context.progress(report.step, report.total)

        try:
            return await self._process.run(job, on_progress=progressed, on_message=self._heard)
        except ChildNotStarted as lost:  # whatever is trained: another trainer may be able to
            raise WorkerUnfit(lost.fault) from lost
        except ChildLost as lost:
            raise TaskFailed(lost.message, lost.category, retryable=True) from lost

    async def _heard(self, message: ChildMessage) -> None:
        facts: dict[str, Any] = json.loads(message.text)
        if message.kind == "cached":
            if self._unnoted is not None:
                await self._staged(StageReport("caching", facts["done"], facts["total"]))
            return
        if message.kind != "line":  # the pictures are encoded, so the preparation is over
            await self._note_dataset()
        takes: dict[str, Callable[[dict[str, Any]], None]] = {
            "line": lambda line: self._reports.noted(line["text"]),
            "step": self._reports.stepped,
            "validated": lambda told: self._reports.validated(told["step"], told["losses"]),
            "state": self._keep_state,
            "save": self._keep_save,
            "sample": self._keep_sample,
            "trained": self._keep_trained,
        }
        takes[message.kind](facts)

    def _keep_state(self, facts: dict[str, Any]) -> None:
        step = facts["step"]
        folder = f"{self._spec.folder}state/{numbered(self._ref.attempt, step)}/"
        files = [WholeFile(self._folder / local, folder + name) for name, local in facts["files"].items()]
        request = NoteStateRequest(ref=self._ref, step=step, objects=[file.path for file in files])

        async def note() -> None:
            await self._reports.flush()  # the next attempt begins after this step, and will not tell of those before
            await self._tools.calls.state(request)

        self._keeping.add(WholeThing(files, note, newest_only=True))

    def _keep_save(self, facts: dict[str, Any]) -> None:
        local, step = self._folder / facts["file"], facts["step"]
        path = f"{self._spec.folder}saves/{numbered(self._ref.attempt, step)}.safetensors"

        async def note() -> None:
            sha256 = await asyncio.to_thread(_sha256, local)
            size = local.stat().st_size
            await self._tools.calls.save(NoteSaveRequest(ref=self._ref, step=step, path=path, size=size, sha256=sha256))

        self._keeping.add(WholeThing([WholeFile(local, path)], note))

    def _keep_sample(self, facts: dict[str, Any]) -> None:
        path = f"{self._sample_folder}{facts['step']:09d}-{facts['index']}.png"
        request = NoteSampleRequest(
            ref=self._ref,
            step=facts["step"],
            index=facts["index"],
            prompt=facts["prompt"],
            seed=facts["seed"],
            path=path,
        )
        file = WholeFile(self._folder / facts["file"], path, _PNG)
        self._keeping.add(WholeThing([file], partial(self._tools.calls.sample, request)))

    def _keep_trained(self, facts: dict[str, Any]) -> None:
        self._trained = facts

    def _draw(self, prompts: list[str]) -> None:
        self._process.say("sample", json.dumps(prompts))

    # The end

    async def _finish(self) -> None:
        facts, spec = self._trained, self._spec
        if facts is None:
            raise TaskFailed("The training ended without an adapter.", ERROR_CATEGORY_INTERNAL, retryable=True)
        adapter = f"{spec.folder}saves/{numbered(self._ref.attempt, spec.total_steps)}-adapter.safetensors"
        thumbnail = f"{self._sample_folder}thumbnail.jpg"
        files = [
            WholeFile(self._folder / facts["file"], adapter),
            WholeFile(self._folder / facts["thumbnail"], thumbnail, _JPEG),
        ]
        request = FinishTrainingRequest(
            ref=self._ref,
            adapter=FinishedAdapter(
                path=adapter, size=facts["size"], sha256=facts["sha256"], metadata=facts["metadata"]
            ),
            thumbnail_path=thumbnail,
        )

        async def note() -> None:
            path = await self._tools.calls.finish(request)
            _log.info("training_finished", job_id=self._ref.job_id, adapter=path)

        try:
            await self._keeping.store(WholeThing(files, note))
        except BaseException:
            await asyncio.shield(self._keeping.discard(ended=self._context.called_off))
            raise

    def _pause(self) -> None:
        self._paused.set()
        self._process.pause()

    async def _unless_paused(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do what the next attempt would begin anew; a pause ends it."""
        doing = asyncio.ensure_future(work)
        pausing = asyncio.ensure_future(self._paused.wait())
        either: set[Awaitable[Any]] = {doing, pausing}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)  # type: ignore[type-var] # both are futures
            if not doing.done():
                raise TaskCancelled
            return doing.result()
        finally:
            pausing.cancel()
            doing.cancel()
            await asyncio.gather(doing, pausing, return_exceptions=True)


async def _ungrouped(work: Awaitable[_T]) -> _T:
    """Await work that does several things at once, and raise the first of what its parts raise."""
    try:
        return await work
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
