"""Use cases of trainers: what they are to do, and what they tell of the attempts that they hold.

Every report names its attempt. The row keeps the newest attempt that the tasks service has confirmed; a report of an
older one, or of a training that has ended, changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from atelier.tasks.v1 import enums_pb2, worker_service_pb2
from atelier.training.v1 import trainer_service_pb2, training_service_pb2

from meshkit.errors import MeshError, invalid
from meshkit.paths import normalise_path
from services.training import domain
from services.training.adapters import AdapterLibrary, TrainedFile
from services.training.domain import (
    LossRecord,
    PreparationStage,
    SampleRecord,
    SaveRecord,
    TrainingRecord,
    TrainingStatus,
    ValidationRecord,
    preparation_progress,
    training_progress,
    with_lines,
)
from services.training.errors import attempt_has_ended, attempt_is_old, not_prepared, training_not_found
from services.training.job_calls import JobCalls
from services.training.notices import TrainingNotices
from services.training.store import ChangeTraining, TrainingChange, TrainingStore

Ref = worker_service_pb2.AttemptRef


class TrainerReports:
    """What trainers ask and tell.

    Args:
        store: The database.
        jobs: The tasks service, which says whose attempt is the present one.
        adapters: The library.
        notices: Tells watchers and the relay.
        clock: Gives the present, in UTC.
    """

    def __init__(
        self,
        store: TrainingStore,
        *,
        jobs: JobCalls,
        adapters: AdapterLibrary,
        notices: TrainingNotices,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._adapters = adapters
        self._notices = notices
        self._clock = clock

    async def begin(self, ref: Ref) -> tuple[TrainingRecord, list[SaveRecord]]:
        """Note that an attempt has begun.

        Returns:
            The training, and its saves.

        Raises:
            MeshError: `NOT_FOUND`; `CONFLICT` where the attempt is not the present one.
        """
        training_id = UUID(ref.job_id)
        record = await self._store.get(training_id)
        if record is None:
            raise training_not_found(training_id)
        if ref.attempt > record.attempt and not record.has_ended:
            job = (await self._jobs.find([training_id])).get(training_id)
            executing = job is not None and job.status == enums_pb2.TASK_STATUS_EXECUTING
            if job is None or not executing or job.attempt != ref.attempt:
                raise attempt_is_old()

        def body(current: TrainingRecord) -> TrainingChange | None:
            _refuse(current, ref, begins=True)
            if current.attempt == ref.attempt:
                return None
            now = self._clock()
            begun = replace(
                current,
                attempt=ref.attempt,
                started_at=current.started_at or now,
                eta_seconds=None,
                job_made=True,
                wanted_samples=[],
            )
            if current.status is not TrainingStatus.PENDING:
                return TrainingChange(begun)
            if current.manifest_path is not None:
                begun = replace(begun, status=TrainingStatus.TRAINING, progress=domain.PREPROCESSING_SHARE)
                return TrainingChange(begun, tells_training=True)
            begun = replace(begun, status=TrainingStatus.PREPROCESSING, preprocessing_started_at=now)
            return TrainingChange(begun, tells_training=True, tells_preprocessing=True)

        record = await self._write(training_id, body)
        return record, await self._store.saves(training_id)

    async def stage(self, request: trainer_service_pb2.ReportStageRequest) -> None:
        """Take how far the preparation has come."""
        stage = PreparationStage(request.stage)
        rejects = training_service_pb2.GetTrainingDatasetResponse(rejects=request.rejects).SerializeToString()

        def body(current: TrainingRecord) -> TrainingChange | None:
            _refuse(current, request.ref)
            if current.status is not TrainingStatus.PREPROCESSING:
                return None
            progress = preparation_progress(stage, request.processed_files, request.total_files)
            changed = replace(
                current,
                preprocessing_stage=stage.value,
                processed_files_count=request.processed_files,
                total_files_count=request.total_files,
                progress=max(current.progress, progress),
            )
            return TrainingChange(
                changed,
                tells_preprocessing=current.preprocessing_stage != stage.value,
                dataset=rejects if request.rejects else None,
            )

        self._notices.progressed(await self._write(UUID(request.ref.job_id), body))

    async def dataset(self, request: trainer_service_pb2.NoteDatasetRequest) -> None:
        """Take what the training learns from; the preparation has ended."""
        whole = training_service_pb2.GetTrainingDatasetResponse(
            images=request.images, rejects=request.rejects, manifest_path=request.manifest_path
        )

        def body(current: TrainingRecord) -> TrainingChange | None:
            _refuse(current, request.ref)
            _inside(current, "manifest_path", [request.manifest_path], "dataset/")
            if current.manifest_path == request.manifest_path:
                return None
            now = self._clock()
            changed = replace(
                current,
                status=TrainingStatus.TRAINING,
                manifest_path=request.manifest_path,
                preprocessing_stage=PreparationStage.COMPLETED.value,
                processed_files_count=len(request.images),
                total_files_count=len(request.images) + len(request.rejects),
                preprocessing_completed_at=max(now, current.preprocessing_started_at or now),
                progress=max(current.progress, domain.PREPROCESSING_SHARE),
            )
            return TrainingChange(
                changed,
                tells_training=current.status is not TrainingStatus.TRAINING,
                tells_preprocessing=True,
                dataset=whole.SerializeToString(),
            )

        await self._write(UUID(request.ref.job_id), body)

    async def steps(self, request: trainer_service_pb2.ReportStepsRequest) -> Sequence[str]:
        """Take what steps have come to.

        Returns:
            Prompts of pictures to make after the next step.
        """
        wanted: list[str] = []

        def body(current: TrainingRecord) -> TrainingChange:
            _refuse(current, request.ref)
            if current.status is not TrainingStatus.TRAINING:
                raise not_prepared()
            wanted[:] = current.wanted_samples
            step = min(request.step, current.total_steps)
            changed = replace(
                current,
                # After a lost attempt some steps are taken again; what was shown stays.
                current_step=max(current.current_step, step),
                progress=max(current.progress, training_progress(step, current.total_steps)),
                eta_seconds=request.eta_seconds if request.HasField("eta_seconds") else None,
                logs=with_lines(current.logs, request.log_lines),
                wanted_samples=[],
            )
            return TrainingChange(
                changed,
                losses=[LossRecord(one.step, one.loss) for one in request.losses],
                validation=[ValidationRecord(one.step, one.bucket, one.loss) for one in request.validation],
            )

        self._notices.progressed(await self._write(UUID(request.ref.job_id), body))
        return wanted

    async def state(self, request: trainer_service_pb2.NoteStateRequest) -> None:
        """Take what the next attempt goes on from; what was there before is swept."""

        def body(current: TrainingRecord) -> TrainingChange:
            _refuse(current, request.ref)
            _inside(current, "objects", request.objects, "state/")
            kept = set(request.objects)
            # The state of the training that this one goes on from is that training's.
            old = [path for path in current.resume_objects if path not in kept and path.startswith(current.folder)]
            changed = replace(current, resume_step=request.step, resume_objects=list(request.objects))
            return TrainingChange(changed, sweeps=old)

        await self._write(UUID(request.ref.job_id), body)

    async def save(self, request: trainer_service_pb2.NoteSaveRequest) -> None:
        """Take an adapter as it is now; the oldest beyond the number to keep are swept."""

        def body(current: TrainingRecord) -> TrainingChange:
            _refuse(current, request.ref)
            _inside(current, "path", [request.path], "saves/")
            save = SaveRecord(request.step, request.path, request.size, request.sha256, self._clock())
            return TrainingChange(current, save=save, saves_to_keep=domain.MAX_STEP_SAVES_TO_KEEP)

        await self._write(UUID(request.ref.job_id), body)

    async def sample(self, request: trainer_service_pb2.NoteSampleRequest) -> None:
        """Take a sample picture."""

        def body(current: TrainingRecord) -> TrainingChange:
            _refuse(current, request.ref)
            _inside(current, "path", [request.path], "samples/")
            sample = SampleRecord(request.step, request.index, request.prompt, request.seed, request.path)
            return TrainingChange(current, sample=sample)

        await self._write(UUID(request.ref.job_id), body)

    async def finish(self, request: trainer_service_pb2.FinishTrainingRequest) -> str:
        """Put the trained adapter into the library.

        Returns:
            Its path there.
        """
        training_id = UUID(request.ref.job_id)
        record = await self._store.get(training_id)
        if record is None:
            raise training_not_found(training_id)
        _refuse(record, request.ref)
        adapter = request.adapter
        _inside(record, "adapter.path", [adapter.path], "saves/")
        thumbnail = request.thumbnail_path if request.HasField("thumbnail_path") else None
        if thumbnail is not None:
            _inside(record, "thumbnail_path", [thumbnail], "samples/")
        trained = TrainedFile(adapter.path, adapter.size, adapter.sha256, dict(adapter.metadata), thumbnail)
        path = await self._adapters.register(record, trained)

        def body(current: TrainingRecord) -> TrainingChange | None:
            _refuse(current, request.ref)
            return None if current.local_model_path == path else TrainingChange(replace(current, local_model_path=path))

        await self._write(training_id, body)
        return path

    async def _write(self, training_id: UUID, body: ChangeTraining) -> TrainingRecord:
        found = await self._store.change(training_id, body)
        if found is None:
            raise training_not_found(training_id)
        before, after = found
        if before.version != after.version:
            self._notices.changed(training_id)
        return after


def _refuse(current: TrainingRecord, ref: Ref, *, begins: bool = False) -> None:
    if current.has_ended:
        raise attempt_has_ended()
    if ref.attempt < current.attempt or (ref.attempt > current.attempt and not begins):
        raise attempt_is_old()


def _inside(record: TrainingRecord, field: str, paths: Sequence[str], part: str) -> None:
    """Refuse objects that are not the training's own: what is named here is served to its callers, and deleted."""
    for index, path in enumerate(paths):
        try:
            fits = normalise_path(path) == path and path.startswith(f"{record.folder}{part}")
        except MeshError:
            fits = False
        if not fits:
            place = f"{field}[{index}]" if field == "objects" else field
            raise invalid(place, f"lies outside of {record.folder}{part}", "foreign_object")
