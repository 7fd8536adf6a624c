"""The trainer's handler on a real store and a real child, and a training service that only remembers."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from atelier.inference.v1.child_pb2 import ChildJob, ChildProgress
from atelier.tasks.v1.task_pb2 import Task
from atelier.training.v1.trainer_service_pb2 import (
    BeginAttemptRequest,
    FinishTrainingRequest,
    NoteDatasetRequest,
    NoteSampleRequest,
    NoteSaveRequest,
    NoteStateRequest,
    ReportStageRequest,
    ReportStepsRequest,
    ReportStepsResponse,
    ResumeState,
    TrainingSpec,
)
from atelier.training.v1.training_pb2 import CreateTraining, TrainingSave
from PIL import Image

from meshkit.fetcher import Fetcher
from meshkit.images.checks import ImageChecks
from meshkit.objects import ObjectStore
from meshkit.worker.handlers import Output
from meshkit.worker.inputs import Inputs
from meshkit.worker.job_context import JobContext
from meshkit.worker.job_process import JobProcess
from meshkit.worker.lora_cache import LoraCache
from models.garments.catalogue import GarmentFacts
from models.garments.draw import draw
from services.training.trainer.attempt import TrainerTools
from services.training.trainer.base_models import TrainableModels
from services.training.trainer.composition import child_command
from services.training.trainer.config import TrainerSettings
from services.training.trainer.handler import TrainingHandler
from services.training.trainer.service_calls import AttemptLost, TrainerCalls
from tests.conftest import S3Store

JOB = "9b2f1c58-3a5e-4d6f-8f2b-1d0a4a6c7e11"
FOLDER = f"trainings/{JOB}/"


def picture(seed: int, size: int = 96) -> bytes:
    content = io.BytesIO()
    Image.fromarray(draw(GarmentFacts("dress", "red", "dots", "blue"), np.random.default_rng(seed), size).picture).save(
        content, "PNG"
    )
    return content.getvalue()


class Owner:
    """What the training service remembers of one training."""

    def __init__(self, **training: Any) -> None:
        self.spec = TrainingSpec(
            training_id=JOB,
            tenant="acme",
            training=CreateTraining(trigger_word="zorblax", rank=4, learning_rate=1e-3, base_model_path="garments"),
            folder=FOLDER,
            total_steps=6,
            seed=42,
            save_every=1000,
            max_step_saves_to_keep=4,
            batch_size=1,
            gradient_accumulation=1,
            optimizer="adamw8bit",
            sample_every=1000,
            sample_steps=1,
        )
        self.spec.training.MergeFrom(CreateTraining(**training))
        self.stages: list[tuple[str, int, int]] = []
        self.datasets: list[NoteDatasetRequest] = []
        self.steps: list[int] = []
        self.buckets: set[str] = set()
        self.lines: list[str] = []
        self.states: list[NoteStateRequest] = []
        self.saves: list[NoteSaveRequest] = []
        self.samples: list[NoteSampleRequest] = []
        self.finished: list[FinishTrainingRequest] = []
        self.wanted: list[str] = []
        self.lost = False
        self.staged, self.stepped, self.stated = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def _fence(self) -> None:
        if self.lost:
            raise AttemptLost("ATTEMPT_LOST")

    async def begin(self, request: BeginAttemptRequest) -> TrainingSpec:
        self._fence()
        spec = TrainingSpec()
        spec.CopyFrom(self.spec)
        if self.states:
            spec.resume.CopyFrom(ResumeState(step=self.states[-1].step, objects=self.states[-1].objects))
        if self.datasets:
            spec.dataset_manifest_path = self.datasets[-1].manifest_path
        spec.saves.extend(TrainingSave(step=one.step, path=one.path) for one in self.saves)
        return spec

    async def stage(self, request: ReportStageRequest) -> None:
        self._fence()
        self.stages.append((request.stage, request.processed_files, request.total_files))
        self.staged.set()

    async def dataset(self, request: NoteDatasetRequest) -> None:
        self._fence()
        self.datasets.append(request)

    async def steps_(self, request: ReportStepsRequest) -> ReportStepsResponse:
        self._fence()
        assert self.datasets, "the preparation has not ended"
        self.steps += [point.step for point in request.losses]
        self.buckets |= {point.bucket for point in request.validation}
        self.lines += request.log_lines
        self.stepped.set()
        wanted, self.wanted = self.wanted, []
        return ReportStepsResponse(sample_prompts=wanted)

    async def state(self, request: NoteStateRequest) -> None:
        self._fence()
        self.states.append(request)
        self.stated.set()

    async def save(self, request: NoteSaveRequest) -> None:
        self._fence()
        self.saves.append(request)

    async def sample(self, request: NoteSampleRequest) -> None:
        self._fence()
        self.samples.append(request)

    async def finish(self, request: FinishTrainingRequest) -> str:
        self._fence()
        self.finished.append(request)
        return "product/zorblax.safetensors"


class Calls:
    """The owner's calls, by the names of `TrainerCalls`."""

    def __init__(self, owner: Owner) -> None:
        self.begin, self.stage, self.dataset = owner.begin, owner.stage, owner.dataset
        self.steps, self.state, self.save = owner.steps_, owner.state, owner.save
        self.sample, self.finish = owner.sample, owner.finish


class TrainerRig:
    """Runs attempts."""

    def __init__(self, folder: Path, objects: ObjectStore) -> None:
        self.folder = folder
        self.objects = objects
        self.checks = ImageChecks()
        loras = LoraCache(objects, folder / "loras", max_bytes=1000, max_file_bytes=1000)
        self.inputs = Inputs(objects, Fetcher(), loras, self.checks, max_bytes=1 << 20, timeout_seconds=30)
        self.settings = TrainerSettings(torch_threads=1, trainer_state_seconds=0.01, trainer_preservation="none")
        self.processes: list[JobProcess] = []
        self.attempts = 0
        self.context: JobContext | None = None

    async def upload(self, owner: Owner, **pictures: bytes) -> None:
        """Store pictures as the training's inputs."""
        for name, content in pictures.items():
            path = f"{FOLDER}inputs/{name}.png"
            await self.objects.put("acme", path, content)
            owner.spec.training.source_images.append(path)

    def begin(self, owner: Owner) -> asyncio.Task[Output]:
        """Begin the next attempt."""
        self.attempts += 1
        folder = self.folder / str(self.attempts)
        job = ChildJob(job_id=JOB, task=Task(id=JOB, attempt=self.attempts), folder=str(folder))
        self.progress: list[ChildProgress] = []
        self.context = JobContext(job, self.progress.append)
        tools = TrainerTools(
            settings=self.settings,
            calls=cast("TrainerCalls", Calls(owner)),
            objects=self.objects,
            inputs=self.inputs,
            models=TrainableModels(self.settings.places, allow_download=False),
            captions=None,
            process=self._process,
        )
        return asyncio.create_task(TrainingHandler(tools).run(self.context))

    def _process(self) -> JobProcess:
        process = JobProcess(child_command(self.settings), limits=self.settings.limits)
        self.processes.append(process)
        return process

    async def stored(self) -> set[str]:
        """Names of the training's objects below its folder, but for its inputs."""
        paths = {info.path.removeprefix(FOLDER) async for info in self.objects.walk("acme", FOLDER)}
        return {path for path in paths if not path.startswith("inputs/")}


@pytest.fixture
async def rig(tmp_path: Path, s3: S3Store) -> AsyncIterator[TrainerRig]:
    objects = ObjectStore(s3.endpoint, s3.access_key, s3.secret_key, bucket=s3.bucket())
    made = TrainerRig(tmp_path, objects)
    yield made
    await made.checks.close()
    await objects.close()
