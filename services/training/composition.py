"""The service put together: what `__main__` runs and what the tests start."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

from atelier.tasks.v1 import retention_pb2
from atelier.training.v1 import lora_service_pb2_grpc, trainer_service_pb2_grpc, training_service_pb2_grpc

from meshkit import db as meshdb
from meshkit.auth import ServiceTokens
from meshkit.bus import Bus
from meshkit.channel import MeshChannel
from meshkit.db import Database
from meshkit.fetcher import Fetcher
from meshkit.health import HealthPart, PartStates
from meshkit.images.checks import ImageChecks
from meshkit.lingers import TASK_EVENT_LINGER, TASKS_RELAY_LINGER
from meshkit.loops import Loops, coalesced
from meshkit.media_urls import MediaLinks
from meshkit.metrics import serve_metrics
from meshkit.objects import ObjectStore
from meshkit.outbox import Relay
from meshkit.retention import Pruning
from meshkit.retention_calls import TaskHolds, asked_ages
from meshkit.server import build_server
from meshkit.stored_bytes import StoredBytes
from meshkit.supervision import supervise
from meshkit.topology import TRAINING
from services.training.config import TrainingSettings
from services.training.ends import TrainingEnds
from services.training.events import JOB_ENDED, JOB_REQUEUED
from services.training.inputs import SourceImages
from services.training.job_calls import JobCalls
from services.training.library.bases import known_bases
from services.training.library.conversion.converter import ConversionLimits, PickleConverter
from services.training.library.files import LoraFiles
from services.training.library.loops import LibraryMaintenance
from services.training.library.service import LibraryLimits, LoraLibrary
from services.training.library.servicer import LibraryServicer
from services.training.library.trained import TrainedAdapters
from services.training.loops import TrainingMaintenance
from services.training.notices import TrainingNotices
from services.training.postgres.loras import PostgresLoraStore
from services.training.postgres.retention import PostgresOldTrainings
from services.training.postgres.store import PostgresTrainingStore
from services.training.reports import TrainerReports
from services.training.retention import OldTrainings
from services.training.service import TrainingsService
from services.training.servicer import TrainerServicer, TrainingServicer
from services.training.watch import TrainingWatchers

DURABLE = "training-job-ends"


@dataclass(frozen=True, slots=True)
class TrainingRuntime:
    """A running service; its parts are for tests that call a loop's body themselves."""

    address: str
    maintenance: TrainingMaintenance
    library_maintenance: LibraryMaintenance
    retention: Pruning
    holds: TaskHolds
    relay: Relay
    database: Database
    objects: ObjectStore


async def start(settings: TrainingSettings, stack: AsyncExitStack) -> TrainingRuntime:
    """Start the service; the stack stops it.

    Args:
        settings: Its settings.
        stack: Closed in reverse order at the end.
    """
    tokens = ServiceTokens.from_settings(settings, TRAINING.role, TRAINING.scopes)
    await meshdb.migrate(settings.database_url.get_secret_value(), TRAINING.schema, TRAINING.migrations)
    database = Database.from_settings(settings, schema=TRAINING.schema)
    await database.open()
    stack.push_async_callback(database.close)
    bus = Bus(settings.nats_url.get_secret_value(), replicas=settings.nats_replicas)
    await bus.connect()
    stack.push_async_callback(bus.close)
    channel = MeshChannel.from_settings(settings, settings.tasks_address, tokens.token)
    stack.push_async_callback(channel.close)
    objects = ObjectStore.from_settings(settings)
    stack.push_async_callback(objects.close)
    checks = ImageChecks.from_settings(settings)
    stack.push_async_callback(checks.close)
    stored = StoredBytes(objects, settings.tenant_storage_bytes)
    stack.push_async_callback(stored.close)

    store = PostgresTrainingStore(database, late_seconds=settings.training_sweep_delay_seconds)
    relay = Relay(database, bus)
    stack.push_async_callback(relay.close)
    notices = TrainingNotices(bus, coalesced(relay.wake, TASKS_RELAY_LINGER))
    jobs = JobCalls(channel, timeout_seconds=settings.training_timeout_seconds)
    ends = TrainingEnds(store, notices)
    loras = PostgresLoraStore(database)
    lora_files = LoraFiles(objects, checks, loras)
    library = _library(settings, loras, objects=objects, files=lora_files, stored=stored)
    adapters = TrainedAdapters(library)
    fetcher = Fetcher.from_settings(settings)
    trainings = TrainingsService(
        store,
        jobs=jobs,
        ends=ends,
        images=SourceImages(objects, fetcher, checks, stored, max_bytes=settings.training_input_bytes),
        adapters=adapters,
        fetcher=fetcher,
        notices=notices,
        clock=_now,
        models=settings.trained_models,
        most_waiting=settings.tenant_waiting_trainings,
    )
    reports = TrainerReports(store, jobs=jobs, adapters=adapters, notices=notices, clock=_now)
    maintenance = TrainingMaintenance(
        store, trainings=trainings, jobs=jobs, ends=ends, objects=objects, settings=settings
    )
    library_maintenance = LibraryMaintenance(loras, lora_files)
    old_rows = PostgresOldTrainings(database, late_seconds=settings.training_sweep_delay_seconds)
    holds = TaskHolds(channel, old_rows.open_requests)
    old_trainings = OldTrainings(old_rows, store, jobs, objects)
    retention = Pruning(
        "trainings",
        old_trainings,
        asked_ages(channel, retention_pb2.RETENTION_KIND_TRAININGS),
        share=settings.retention_share,
    )
    loops = Loops(
        *maintenance.loops(),
        *library_maintenance.loops(),
        retention.loop("trainings-old", settings.retention_interval_seconds),
        holds.loop("trainings-holds"),
        relay.loop,
    )
    if settings.run_loops:
        await supervise(stack, loops, bus, TRAINING.role)
        consumer = await bus.consume_batches(DURABLE, (JOB_ENDED, JOB_REQUEUED), ends.batch, linger=TASK_EVENT_LINGER)
        stack.callback(consumer.cancel)
    links = MediaLinks.from_settings(settings)
    parts = PartStates(
        [
            HealthPart("postgresql", database.ping, every_call=True),
            HealthPart("object_store", objects.ping),
            HealthPart("nats", bus.ping, essential=False),
        ],
        lambda: [f"loops/{name}" for name in loops.ailing],
    )
    server = build_server(
        settings,
        TRAINING,
        [
            (
                training_service_pb2_grpc.add_TrainingServiceServicer_to_server,
                TrainingServicer(trainings, TrainingWatchers(store, bus, links), links, retention, old_trainings),
            ),
            (trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server, TrainerServicer(reports)),
            (lora_service_pb2_grpc.add_LoraServiceServicer_to_server, LibraryServicer(library)),
        ],
        parts,
    )
    await server.start()
    stack.push_async_callback(server.stop)
    page = serve_metrics(settings.metrics_port, settings.metrics_host)
    if page is not None:
        stack.callback(page.close)
    return TrainingRuntime(server.address, maintenance, library_maintenance, retention, holds, relay, database, objects)


def _library(
    settings: TrainingSettings,
    store: PostgresLoraStore,
    *,
    objects: ObjectStore,
    files: LoraFiles,
    stored: StoredBytes,
) -> LoraLibrary:
    converter = PickleConverter(
        ConversionLimits(file_bytes=2 * settings.max_lora_bytes, seconds=settings.lora_conversion_seconds)
    )
    limits = LibraryLimits(settings.max_lora_bytes, settings.loras_at_once, settings.shared_tenant)
    return LoraLibrary(
        store,
        objects=objects,
        files=files,
        converter=converter,
        bases=known_bases(settings.lora_models),
        stored=stored,
        limits=limits,
        clock=_now,
    )


def _now() -> datetime:
    return datetime.now(UTC)
