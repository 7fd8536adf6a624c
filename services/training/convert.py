"""Between rows and messages of the contract."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from atelier.tasks.v1 import enums_pb2
from atelier.training.v1 import trainer_service_pb2, training_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from meshkit.loras import LORA_FOLDER
from meshkit.media_urls import MediaLinks
from meshkit.moments import assign
from meshkit.spelling import value_names, value_numbers
from services.training import domain
from services.training.domain import LossRecord, SampleRecord, SaveRecord, TrainingRecord, ValidationRecord
from services.training.events import dataset_folder

STATUS = value_numbers(training_pb2.TrainingStatus.DESCRIPTOR)
CATEGORY = value_numbers(enums_pb2.ErrorCategory.DESCRIPTOR)
CATEGORY_NAME = value_names(enums_pb2.ErrorCategory.DESCRIPTOR)
JOB_STATUS_NAME = value_names(enums_pb2.TaskStatus.DESCRIPTOR)
_CAPTIONING_NAME = value_names(training_pb2.CaptioningStrategy.DESCRIPTOR)
# Members that a training shows as its caller gave them, or as the defaults filled them in.
_SAME = (
    "training_type",
    "entity_type",
    "trigger_word",
    "rank",
    "steps",
    "learning_rate",
    "base_model_path",
    "bypass_guidance_embedding",
    "origin_instance",
)
_SAME_OR_NULL = ("entity_id", "origin_zone", "origin_version", "preprocessing_captioning_prompt")
_OWN = (
    "progress",
    "current_step",
    "total_steps",
    "logs",
    "priority",
    "version",
    "eta_seconds",
    "local_model_path",
    "preprocessing_stage",
    "processed_files_count",
    "total_files_count",
)
_MOMENTS = (
    "created_at",
    "updated_at",
    "started_at",
    "completed_at",
    "priority_changed_at",
    "preprocessing_started_at",
    "preprocessing_completed_at",
)


def to_training(record: TrainingRecord) -> training_pb2.TrainingTask:
    """Return a training as callers see it."""
    wanted = training_pb2.CreateTraining.FromString(record.request)
    training = training_pb2.TrainingTask(
        id=str(record.id),
        origin_tenant_id=record.tenant,
        status=STATUS[record.status],
        training_folder=record.folder.rstrip("/"),
        save_every=domain.SAVE_EVERY,
        max_step_saves_to_keep=domain.MAX_STEP_SAVES_TO_KEEP,
        batch_size=domain.BATCH_SIZE,
        gradient_accumulation=domain.GRADIENT_ACCUMULATION,
        optimizer=domain.OPTIMIZER,
        sample_every=domain.SAMPLE_EVERY,
        sample_steps=domain.SAMPLE_STEPS,
        sample_prompts=wanted.sample_prompts,
        source_images=wanted.source_images,
        preprocessing_transforms=wanted.preprocessing_transforms,
        preprocessing_captioning_strategy=_CAPTIONING_NAME[wanted.preprocessing_captioning_strategy].lower(),
        processed_dataset_path=dataset_folder(record),
        webhook_url=record.webhook_url or "",
        error_message=record.error_message,
    )
    for name in _SAME:
        setattr(training, name, getattr(wanted, name))
    for name in _SAME_OR_NULL:
        if wanted.HasField(name):  # type: ignore[arg-type]  # names of the message
            setattr(training, name, getattr(wanted, name))
    _fill_state(training, record)
    return training


def _fill_state(training: training_pb2.TrainingTask, record: TrainingRecord) -> None:
    """Fill the members that say where a training stands."""
    ident = str(record.id)
    for name in _OWN:
        value = getattr(record, name)
        if value is not None:
            setattr(training, name, value)
    if record.job_made:
        training.celery_chain_task_id = ident
    if record.preprocessing_started_at is not None:
        training.celery_preprocessing_task_id = ident
    if record.preprocessing_completed_at is not None or record.current_step:
        training.celery_training_task_id = ident
    if record.error_category is not None:
        training.error_category = CATEGORY[record.error_category]
    for name in _MOMENTS:
        value = getattr(record, name)
        if value is not None:
            moment: Timestamp = getattr(training, name)
            assign(moment, value)


def to_spec(record: TrainingRecord, saves: Iterable[SaveRecord]) -> trainer_service_pb2.TrainingSpec:
    """Return what a trainer is to do."""
    spec = trainer_service_pb2.TrainingSpec(
        training_id=str(record.id),
        tenant=record.tenant,
        folder=record.folder,
        total_steps=record.total_steps,
        seed=record.seed,
        save_every=domain.SAVE_EVERY,
        max_step_saves_to_keep=domain.MAX_STEP_SAVES_TO_KEEP,
        batch_size=domain.BATCH_SIZE,
        gradient_accumulation=domain.GRADIENT_ACCUMULATION,
        optimizer=domain.OPTIMIZER,
        sample_every=domain.SAMPLE_EVERY,
        sample_steps=domain.SAMPLE_STEPS,
        masked_loss=record.masked_loss,
        dataset_manifest_path=record.manifest_path,
        saves=[to_save(one) for one in saves],
    )
    spec.training.ParseFromString(record.request)
    if record.resume_step is not None:
        spec.resume.step = record.resume_step
        spec.resume.objects.extend(record.resume_objects)
    elif record.start_from is not None:
        spec.start_from_path = f"{LORA_FOLDER}/{record.start_from}"
        spec.start_from_tenant = record.start_from_tenant
    return spec


def to_losses(records: Sequence[LossRecord]) -> list[training_pb2.LossPoint]:
    """Return losses of steps as callers see them."""
    return [training_pb2.LossPoint(step=one.step, loss=one.loss) for one in records]


def to_validation(records: Sequence[ValidationRecord]) -> list[training_pb2.ValidationPoint]:
    """Return losses on the validation set as callers see them."""
    return [training_pb2.ValidationPoint(step=one.step, bucket=one.bucket, loss=one.loss) for one in records]


def to_save(record: SaveRecord) -> training_pb2.TrainingSave:
    """Return an adapter as it was at a step."""
    save = training_pb2.TrainingSave(step=record.step, path=record.path, size=record.size, sha256=record.sha256)
    assign(save.created_at, record.created_at)
    return save


def to_sample(record: SampleRecord, tenant: str, links: MediaLinks | None) -> training_pb2.TrainingSample:
    """Return a sample picture as callers see it."""
    return training_pb2.TrainingSample(
        step=record.step,
        index=record.index,
        prompt=record.prompt,
        seed=record.seed,
        path=record.path,
        url=links.url(tenant, record.path) if links is not None else None,
    )
