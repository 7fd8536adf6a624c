"""Use cases of callers: create, list, read, cancel, continue, sample now, look at dataset, losses and saves."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID, uuid4

from atelier.training.v1 import training_pb2, training_service_pb2

from meshkit import metrics, tracing
from meshkit.access import Caller
from meshkit.db import DatabaseUnavailableError
from meshkit.errors import ErrorKind, MeshError, conflict, invalid
from meshkit.fetcher import Fetcher
from meshkit.idempotency import IdempotencyKey
from meshkit.logging import get_logger
from meshkit.quotas import over_limit
from services.training import rules
from services.training.adapters import AdapterLibrary, adapter_path
from services.training.convert import to_training
from services.training.domain import (
    LossRecord,
    SampleRecord,
    SaveRecord,
    TrainingRecord,
    TrainingStatus,
    ValidationRecord,
    folder_of,
)
from services.training.ends import TrainingEnds
from services.training.errors import nothing_to_continue, training_goes_on, training_has_ended, training_not_found
from services.training.inputs import SourceImage, SourceImages
from services.training.job_calls import JobCalls
from services.training.notices import TrainingNotices
from services.training.store import TrainingChange, TrainingStore

_log = get_logger(__name__)

_CREATED = metrics.counter("trainings_created", "Trainings accepted")
TENANT_PATH = "training.origin_tenant_id"
WAITING_TRAININGS = "waiting_trainings"
CURVE_POINTS = 1000
_USED_UP = (ErrorKind.INVALID, ErrorKind.NOT_FOUND)
# Every JSON client can repeat such a number.
_MAX_DRAWN_SEED = 1 << 53


@dataclass(frozen=True, slots=True)
class TrainingCurve:
    """The losses of a training."""

    losses: Sequence[LossRecord]
    validation: Sequence[ValidationRecord]


class TrainingsService:
    """Trainings, as their callers know them.

    Args:
        store: The database.
        jobs: The tasks service.
        ends: What follows the end of a job.
        images: Judges images and moves them into place.
        adapters: The library.
        fetcher: Judges the addresses of webhooks.
        notices: Tells watchers and the relay.
        clock: Gives the present, in UTC.
        models: Names of the base models that trainers have; none where that is not known.
        most_waiting: Trainings of a tenant that have not ended.
    """

    def __init__(
        self,
        store: TrainingStore,
        *,
        jobs: JobCalls,
        ends: TrainingEnds,
        images: SourceImages,
        adapters: AdapterLibrary,
        fetcher: Fetcher,
        notices: TrainingNotices,
        clock: Callable[[], datetime],
        models: Sequence[str],
        most_waiting: int,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._ends = ends
        self._images = images
        self._adapters = adapters
        self._fetcher = fetcher
        self._notices = notices
        self._clock = clock
        self._models = models
        self._most_waiting = most_waiting

    async def create(
        self, request: training_service_pb2.CreateTrainingRequest, caller: Caller, key: IdempotencyKey | None
    ) -> tuple[TrainingRecord | bytes, bool]:
        """Accept a training and queue its job.

        Returns:
            The training, or the serialized answer to replay; and whether it is a replay.

        Raises:
            MeshError: `INVALID` with the member's path, `FORBIDDEN`, `CONFLICT`, `EXHAUSTED`.
        """
        tenant = caller.tenant_of(request.training.origin_tenant_id, TENANT_PATH)
        if request.HasField("training_id") and (found := await self._named(request, caller, tenant)) is not None:
            return found, False
        if key is not None and (replay := await self._store.find_replay(tenant, key)) is not None:
            return replay, True
        try:
            return await self._accept(request, caller, tenant, key)
        except MeshError as error:
            # A duplicate at the same moment names the same upload, which is gone once the first of them is committed.
            replay = await self._store.find_replay(tenant, key) if key is not None and error.kind in _USED_UP else None
            if replay is None:
                raise
            return replay, True

    async def _named(
        self, request: training_service_pb2.CreateTrainingRequest, caller: Caller, tenant: str
    ) -> TrainingRecord | None:
        if not caller.is_service:
            raise invalid("training_id", "Unknown member", "extra_forbidden")
        found = await self._store.get(UUID(request.training_id))
        if found is not None and found.tenant != tenant:
            raise conflict(f"The identifier {request.training_id} was used before", reason="TRAINING_ID_USED")
        return found

    async def _accept(
        self,
        request: training_service_pb2.CreateTrainingRequest,
        caller: Caller,
        tenant: str,
        key: IdempotencyKey | None,
    ) -> tuple[TrainingRecord | bytes, bool]:
        wanted = request.training
        rules.check_request(wanted, self._models)
        if wanted.webhook_url:
            self._fetcher.check(wanted.webhook_url, path="training.webhook_url")
        start_from, owner = await self._adapter(request, tenant)
        if not caller.is_service:  # the step of a workflow that was accepted goes on
            await self._admit(tenant)
        training_id = UUID(request.training_id) if request.HasField("training_id") else uuid4()
        folder = folder_of(training_id)
        images = await self._images.accept(wanted.source_images, tenant, folder, "training.source_images")
        accepted = training_pb2.CreateTraining()
        accepted.CopyFrom(wanted)
        del accepted.source_images[:]
        accepted.source_images.extend(image.path for image in images)
        accepted.origin_tenant_id = tenant
        record = self._new(
            training_id,
            tenant,
            accepted,
            total_steps=wanted.steps,
            seed=request.seed if request.HasField("seed") else secrets.randbelow(_MAX_DRAWN_SEED),
            masked_loss=request.masked_loss,
            priority=request.priority,
            start_from=start_from,
            start_from_tenant=owner,
        )
        return await self._write(record, images, key)

    async def _write(
        self, record: TrainingRecord, images: Sequence[SourceImage], key: IdempotencyKey | None
    ) -> tuple[TrainingRecord | bytes, bool]:
        """Write the images, then the training; where it does not come to be, neither do they."""
        written = [image for image in images if image.is_written]
        response = b""
        if key is not None:  # else nobody can ask for it again
            response = training_service_pb2.CreateTrainingResponse(training=to_training(record)).SerializeToString()
        if written:
            await self._store.note_intent(record.id, record.tenant)
        try:
            await self._images.write(record.tenant, written)
            replay = await self._store.create(record, key, response)
        except (DatabaseUnavailableError, asyncio.CancelledError):
            # Whether the commit takes place is unknown, a caller that leaves does not stop it: the sweeper finds out.
            raise
        except BaseException:
            await self._discard(record, written)
            raise
        if replay is not None:
            answer = training_service_pb2.CreateTrainingResponse.FromString(replay)
            # A commit whose answer was lost is repeated and finds itself: the images are then the training's.
            if answer.training.id != str(record.id):
                await self._discard(record, written)
            return replay, True
        _CREATED.inc()
        self._notices.changed(record.id)
        try:
            await self._images.settle(record.tenant, written)
        except MeshError as error:
            _log.warning("uploads_left_to_sweeper", training_id=str(record.id), reason=error.reason)
        return await self.make_job(record), False

    async def make_job(self, record: TrainingRecord) -> TrainingRecord:
        """Queue the job of a training; where the tasks service is away, the reconciler does it later."""
        try:
            job = await self._jobs.make(record)
        except MeshError as error:
            _log.warning("job_left_to_reconciler", training_id=str(record.id), reason=error.reason)
            return record
        found = await self._store.change(
            record.id, lambda current: None if current.job_made else TrainingChange(replace(current, job_made=True))
        )
        return (await self._ends.follow(record.id, job)) or (found[1] if found is not None else record)

    async def get(self, training_id: UUID, caller: Caller) -> TrainingRecord:
        """Return a training.

        Raises:
            MeshError: `NOT_FOUND`.
        """
        return caller.seen(await self._store.get(training_id), training_id, training_not_found)

    async def list_trainings(self, caller: Caller, skip: int, limit: int) -> list[TrainingRecord]:
        """Trainings of the caller's tenant, of all tenants for operators and support; newest first."""
        tenant = None if caller.reads_across else caller.require_tenant()
        return await self._store.list_trainings(tenant, skip, limit)

    async def cancel(self, training_id: UUID, caller: Caller) -> TrainingRecord:
        """Cancel a training; one that is cancelled already stays as it is.

        Raises:
            MeshError: `NOT_FOUND`, or `CONFLICT` where it has completed or failed; `UNAVAILABLE` where the tasks
                service, which decides who was first, does not answer.
        """
        record = caller.seen(await self._store.get(training_id), training_id, training_not_found, write=True)
        if not record.has_ended:
            if not record.job_made:
                await self._jobs.make(record)
            record = (await self._ends.follow(training_id, await self._jobs.cancel(training_id))) or record
        if record.status in (TrainingStatus.COMPLETED, TrainingStatus.FAILED):
            raise training_has_ended(record.status, "cancelled")
        return record

    async def set_priority(self, training_id: UUID, caller: Caller, priority: int) -> TrainingRecord:
        """Change the order of a training among those of its tenant.

        Raises:
            MeshError: `NOT_FOUND`, or `CONFLICT` where it has ended.
        """
        record = caller.seen(await self._store.get(training_id), training_id, training_not_found, write=True)
        if not record.has_ended:
            if not record.job_made:
                await self._jobs.make(record)
            await self._jobs.set_priority(training_id, priority)

        def body(current: TrainingRecord) -> TrainingChange | None:
            if current.has_ended:
                raise training_has_ended(current.status, "put into another order")
            if current.priority == priority:
                return None
            return TrainingChange(replace(current, priority=priority, priority_changed_at=self._clock(), job_made=True))

        return self._changed(await self._store.change(training_id, body), training_id)

    async def sample(self, training_id: UUID, caller: Caller, prompts: Sequence[str]) -> TrainingRecord:
        """Have sample pictures made after the next step.

        Raises:
            MeshError: `NOT_FOUND`; `CONFLICT` where it has ended; `INVALID` where there is no prompt.
        """
        record = caller.seen(await self._store.get(training_id), training_id, training_not_found, write=True)
        own = training_pb2.CreateTraining.FromString(record.request).sample_prompts
        wanted = list(prompts) or list(own)
        if not wanted:
            raise invalid("sample.prompts", "Field required: the training has no sample_prompts of its own", "missing")

        def body(current: TrainingRecord) -> TrainingChange:
            if current.has_ended:
                raise training_has_ended(current.status, "sampled")
            return TrainingChange(replace(current, wanted_samples=wanted))

        return self._changed(await self._store.change(training_id, body), training_id)

    async def go_on(
        self,
        request: training_service_pb2.ContinueTrainingRequest,
        caller: Caller,
        key: IdempotencyKey | None,
    ) -> tuple[TrainingRecord | bytes, bool]:
        """Make a training that goes on where another one has ended.

        Raises:
            MeshError: `NOT_FOUND`; `CONFLICT` where the other has not ended or has kept nothing; `EXHAUSTED`.
        """
        training_id = UUID(request.task_id)
        former = caller.seen(await self._store.get(training_id), training_id, training_not_found, write=True)
        if key is not None and (replay := await self._store.find_replay(former.tenant, key)) is not None:
            return replay, True
        if not former.has_ended:
            raise training_goes_on()
        if former.resume_step is None and former.local_model_path is None:
            raise nothing_to_continue()
        await self._admit(former.tenant)
        more = request.continuation
        wanted = training_pb2.CreateTraining.FromString(former.request)
        wanted.steps = more.steps
        if more.HasField("learning_rate"):
            wanted.learning_rate = more.learning_rate
        done = former.current_step if former.resume_step is not None else 0
        record = replace(
            self._new(
                uuid4(),
                former.tenant,
                wanted,
                total_steps=done + more.steps,
                seed=former.seed,
                masked_loss=former.masked_loss,
                priority=former.priority,
                start_from=former.local_model_path,
                start_from_tenant=former.tenant,
            ),
            continues=former.id,
            resume_step=former.resume_step,
            resume_objects=former.resume_objects,
            manifest_path=former.manifest_path,
            current_step=former.resume_step or 0,
        )
        return await self._write(record, [], key)

    async def dataset(self, training_id: UUID, caller: Caller) -> tuple[TrainingRecord, bytes | None]:
        """Return a training, and what it learns from, serialized."""
        record = await self.get(training_id, caller)
        found = await self._store.dataset(training_id)
        if found is None and record.continues is not None:
            found = await self._store.dataset(record.continues)
        return record, found

    async def curve(self, training_id: UUID, caller: Caller) -> TrainingCurve:
        """Return the losses of a training."""
        await self.get(training_id, caller)
        return TrainingCurve(
            await self._store.losses(training_id, 0, CURVE_POINTS), await self._store.validation(training_id, -1)
        )

    async def kept(
        self, training_id: UUID, caller: Caller
    ) -> tuple[TrainingRecord, list[SaveRecord], list[SampleRecord]]:
        """Return a training, its saves and its sample pictures."""
        record = await self.get(training_id, caller)
        return record, await self._store.saves(training_id), await self._store.samples(training_id)

    async def _admit(self, tenant: str) -> None:
        if await self._store.open_of(tenant) >= self._most_waiting:
            raise over_limit(WAITING_TRAININGS, self._most_waiting, "tenant_waiting_trainings", retry_seconds=60)

    async def _adapter(
        self, request: training_service_pb2.CreateTrainingRequest, tenant: str
    ) -> tuple[str | None, str]:
        """Return the adapter to start from and the tenant that it belongs to."""
        if not request.HasField("start_from"):
            return None, ""
        path = adapter_path(request.start_from, "start_from")
        owner = await self._adapters.owner(tenant, path)
        if owner is None:
            raise invalid("start_from", f"Unknown LoRA {request.start_from!r}", "unknown_lora")
        return path, owner

    async def _discard(self, record: TrainingRecord, written: Sequence[SourceImage]) -> None:
        if not written:
            return
        try:
            await self._images.discard(record.tenant, record.folder)
        except MeshError as error:
            _log.warning("inputs_left_to_sweeper", training_id=str(record.id), reason=error.reason)

    def _changed(self, found: tuple[TrainingRecord, TrainingRecord] | None, training_id: UUID) -> TrainingRecord:
        if found is None:
            raise training_not_found(training_id)
        before, after = found
        if before.version != after.version:
            self._notices.changed(after.id)
        return after

    def _new(
        self,
        training_id: UUID,
        tenant: str,
        wanted: training_pb2.CreateTraining,
        *,
        total_steps: int,
        seed: int,
        masked_loss: bool,
        priority: int,
        start_from: str | None,
        start_from_tenant: str,
    ) -> TrainingRecord:
        """Return a training as it is first written."""
        now, trace = self._clock(), tracing.current()
        return TrainingRecord(
            id=training_id,
            tenant=tenant,
            status=TrainingStatus.PENDING,
            priority=priority,
            priority_changed_at=None,
            created_at=now,
            updated_at=now,
            started_at=None,
            completed_at=None,
            attempt=0,
            version=1,
            progress=0.0,
            current_step=0,
            total_steps=total_steps,
            eta_seconds=None,
            request=wanted.SerializeToString(),
            webhook_url=wanted.webhook_url or None,
            seed=seed,
            masked_loss=masked_loss,
            start_from=start_from,
            start_from_tenant=start_from_tenant,
            continues=None,
            job_made=False,
            resume_step=None,
            resume_objects=[],
            manifest_path=None,
            local_model_path=None,
            wanted_samples=[],
            logs="",
            error_message=None,
            error_category=None,
            preprocessing_stage=None,
            processed_files_count=None,
            total_files_count=None,
            preprocessing_started_at=None,
            preprocessing_completed_at=None,
            traceparent=trace.traceparent if trace is not None else "",
        )
