"""The service put together: what `__main__` runs and what the tests start."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

from atelier.tasks.v1 import (
    jobs_service_pb2_grpc,
    monitoring_service_pb2_grpc,
    retention_service_pb2_grpc,
    scaling_service_pb2_grpc,
    tasks_service_pb2_grpc,
    usage_service_pb2_grpc,
    webhooks_service_pb2_grpc,
    worker_service_pb2_grpc,
)

from meshkit import db as meshdb
from meshkit.bus import Bus, BusMessage
from meshkit.catalog import TASK_TYPES
from meshkit.db import Database
from meshkit.fetcher import Fetcher
from meshkit.health import HealthPart, PartStates
from meshkit.images.checks import ImageChecks
from meshkit.lingers import TASKS_RELAY_LINGER
from meshkit.loops import Loop, Loops, coalesced
from meshkit.media_urls import MediaLinks
from meshkit.metrics import serve_metrics
from meshkit.objects import ObjectStore
from meshkit.outbox import Relay
from meshkit.server import build_server
from meshkit.stored_bytes import StoredBytes
from meshkit.supervision import supervise
from meshkit.topology import TASKS
from services.tasks.api.creation import TaskPreparer
from services.tasks.api.quotas import TenantQuotas
from services.tasks.api.service import TasksService
from services.tasks.api.servicer import TasksServicer
from services.tasks.api.watch import TaskWatchers
from services.tasks.catalog import QUEUES, Catalog
from services.tasks.config import TasksSettings
from services.tasks.domain import JobKind, RetryPolicy
from services.tasks.events import WAKE_SUBJECT
from services.tasks.inputs.validator import InputValidator
from services.tasks.jobs.service import JobsService
from services.tasks.jobs.servicer import JobsServicer
from services.tasks.loops import TaskMaintenance
from services.tasks.media import shower
from services.tasks.monitoring.requeues import TaskRequeues
from services.tasks.monitoring.service import TaskMonitor
from services.tasks.monitoring.servicer import TaskMonitoringServicer
from services.tasks.notifier import Notifier
from services.tasks.postgres.jobs import PostgresJobs
from services.tasks.postgres.monitoring import PostgresMonitoring
from services.tasks.postgres.retention import PostgresRetention
from services.tasks.postgres.scaling import PostgresScaling
from services.tasks.postgres.store import PostgresTaskStore
from services.tasks.postgres.usage_days import PostgresUsage
from services.tasks.postgres.webhooks import PostgresWebhooks
from services.tasks.providers.service import ProviderDesk
from services.tasks.retention.service import Retention
from services.tasks.retention.servicer import RetentionServicer
from services.tasks.scaling.service import Scaling
from services.tasks.scaling.servicer import ScalingServicer
from services.tasks.scaling.times import WorkTimes
from services.tasks.scheduling.progress import ProgressRelay
from services.tasks.scheduling.scheduler import Scheduler
from services.tasks.scheduling.service import WorkerSessions
from services.tasks.scheduling.servicer import WorkerServicer
from services.tasks.usage.service import MEASURE_SECONDS, StorageMeasure, TenantUsage
from services.tasks.usage.servicer import UsageServicer
from services.tasks.webhooks.sender import Sender
from services.tasks.webhooks.service import WebhooksService
from services.tasks.webhooks.servicer import WebhookServicer


@dataclass(frozen=True, slots=True)
class TasksRuntime:
    """A running service; its parts are for tests that call a loop's body themselves."""

    address: str
    maintenance: TaskMaintenance
    relay: Relay
    database: Database
    objects: ObjectStore
    sender: Sender
    scaling: Scaling
    times: WorkTimes
    retention: Retention


async def start(settings: TasksSettings, stack: AsyncExitStack) -> TasksRuntime:
    """Start the service; the stack stops it.

    Args:
        settings: Its settings.
        stack: Closed in reverse order at the end.
    """
    await meshdb.migrate(settings.database_url.get_secret_value(), TASKS.schema, TASKS.migrations)
    database = Database.from_settings(settings, schema=TASKS.schema)
    await database.open()
    stack.push_async_callback(database.close)
    bus = Bus(settings.nats_url.get_secret_value(), replicas=settings.nats_replicas)
    await bus.connect()
    stack.push_async_callback(bus.close)
    objects = ObjectStore.from_settings(settings)
    stack.push_async_callback(objects.close)

    store = PostgresTaskStore(
        database,
        page_bytes=settings.answer_bytes,
        limits=settings.gate_limits,
        settle_seconds=settings.scale_settle_seconds if settings.scale_in_seconds else None,
    )
    catalog = Catalog(
        task_types=settings.accepted_task_types,
        providers=settings.served_providers,
        cutout_models=settings.cutout_models,
        consistency_networks=settings.consistency_networks,
        enable_noop=settings.enable_noop,
    )
    policy = RetryPolicy(
        settings.max_retries,
        settings.retry_base_seconds,
        max_retry_after_seconds=settings.max_retry_after_seconds,
        fallback_seconds=settings.fallback_seconds,
    )
    relay = Relay(database, bus)
    stack.push_async_callback(relay.close)
    wake_relay = coalesced(relay.wake, TASKS_RELAY_LINGER)
    scheduler = Scheduler(
        store,
        costs=catalog.costs,
        weights=settings.tenant_weights,
        answer_bytes=settings.answer_bytes,
        limits=settings.gate_limits,
        on_events=wake_relay,
    )
    links = MediaLinks.from_settings(settings)
    watchers = TaskWatchers(store, bus, shower(links))
    notifier = Notifier(
        bus,
        secrets.token_bytes(8),
        on_waiting=scheduler.wake,
        on_commit=wake_relay,
        on_ended=watchers.changed,
    )

    fetcher = Fetcher.from_settings(settings)
    checks = ImageChecks.from_settings(settings)
    stack.push_async_callback(checks.close)
    inputs = InputValidator(objects, fetcher, checks, settings.shared_tenant)
    quotas = _quotas(settings, store, objects, stack)
    tasks = TasksService(
        store,
        catalog=catalog,
        preparer=TaskPreparer(catalog, inputs, lambda: datetime.now(UTC)),
        inputs=inputs,
        objects=objects,
        notifier=notifier,
        quotas=quotas,
    )
    stack.push_async_callback(tasks.close)
    progress = ProgressRelay(store, notifier)
    scaling, times, scaling_loops = _scaling(settings, database, catalog)
    sessions = WorkerSessions(
        store,
        scheduler=scheduler,
        progress=progress,
        notifier=notifier,
        policy=policy,
        weights=settings.tenant_weights,
        max_message_bytes=settings.max_message_bytes,
        ttl_seconds=settings.lease_ttl_seconds,
        acknowledge_seconds=settings.acknowledge_seconds,
        max_wait_seconds=settings.default_max_wait_seconds,
        on_completed=times.completed,
    )
    stack.push_async_callback(sessions.close)

    async def on_wake(message: BusMessage) -> None:
        notifier.heard(message.subject.rpartition(".")[2], message.data)

    await bus.subscribe(f"{WAKE_SUBJECT}.*", on_wake)
    maintenance = TaskMaintenance(
        store,
        sessions=sessions,
        objects=objects,
        notifier=notifier,
        policy=policy,
        settings=settings,
        clock=lambda: datetime.now(UTC),
    )
    webhooks = PostgresWebhooks(database)
    sender = Sender(webhooks, fetcher, links=links)
    stack.push_async_callback(sender.close)
    monitoring, usage = PostgresMonitoring(database), PostgresUsage(database)
    old, retention = _retention(settings, database, objects)
    loops = Loops(
        *maintenance.loops(progress),
        Loop("tasks-work-times", times.flush, 10.0),
        *_single_loops(
            settings,
            relay.loop,
            *sender.loops,
            Loop("tasks-counters", monitoring.fold, 5.0),
            *scaling_loops,
            *_usage_loops(usage, objects),
            *_retention_loops(retention, settings.retention_interval_seconds),
        ),
    )
    await supervise(stack, loops, bus, TASKS.role)
    parts = PartStates(
        [
            HealthPart("postgresql", database.ping, every_call=True),
            HealthPart("object_store", objects.ping),
            HealthPart("nats", bus.ping, essential=False),
        ],
        lambda: [*(f"loops/{name}" for name in loops.ailing), *(f"workers/{name}" for name in maintenance.lost)],
    )
    server = build_server(
        settings,
        TASKS,
        [
            (
                tasks_service_pb2_grpc.add_TasksServiceServicer_to_server,
                TasksServicer(
                    tasks,
                    watchers,
                    catalog,
                    quotas=quotas,
                    show=shower(links),
                    providers=ProviderDesk(store, settings.gate_limits, notifier.waiting),
                ),
            ),
            (
                worker_service_pb2_grpc.add_WorkerServiceServicer_to_server,
                WorkerServicer(
                    sessions,
                    ttl_seconds=settings.lease_ttl_seconds,
                    heartbeat_seconds=settings.heartbeat_interval_seconds,
                ),
            ),
            (
                jobs_service_pb2_grpc.add_JobsServiceServicer_to_server,
                JobsServicer(JobsService(PostgresJobs(database), notifier, lambda: datetime.now(UTC)), old),
            ),
            (
                webhooks_service_pb2_grpc.add_WebhookServiceServicer_to_server,
                WebhookServicer(WebhooksService(webhooks, fetcher), links),
            ),
            (scaling_service_pb2_grpc.add_ScalingServiceServicer_to_server, ScalingServicer(scaling)),
            (
                monitoring_service_pb2_grpc.add_TaskMonitoringServiceServicer_to_server,
                TaskMonitoringServicer(
                    TaskMonitor(monitoring, tasks, settings.nats_url.get_secret_value()),
                    TaskRequeues(monitoring, tasks, old),
                    links or MediaLinks.relative(settings),
                ),
            ),
            (usage_service_pb2_grpc.add_UsageServiceServicer_to_server, UsageServicer(TenantUsage(usage))),
            (retention_service_pb2_grpc.add_RetentionServiceServicer_to_server, RetentionServicer(retention)),
        ],
        parts,
    )
    await server.start()
    stack.push_async_callback(server.stop)
    # Parked polls end first: a stopping server waits for the calls in flight.
    stack.push_async_callback(scheduler.close)
    page = serve_metrics(settings.metrics_port, settings.metrics_host)
    if page is not None:
        stack.callback(page.close)
    return TasksRuntime(server.address, maintenance, relay, database, objects, sender, scaling, times, retention)


def _scaling(
    settings: TasksSettings, database: Database, catalog: Catalog
) -> tuple[Scaling, WorkTimes, Sequence[Loop]]:
    store = PostgresScaling(database)
    scaling = Scaling(store, queues=QUEUES, costs=catalog.costs, policy=settings.scale_policy)
    loops = (
        Loop("tasks-scale-in", scaling.scale_in, 1.0, jitter=0.2),
        Loop("tasks-forget-times", store.forget_times, 3600.0),
    )
    return scaling, WorkTimes(store), loops


def _single_loops(settings: TasksSettings, *loops: Loop) -> tuple[Loop, ...]:
    return loops if settings.run_loops else ()


def _retention(
    settings: TasksSettings, database: Database, objects: ObjectStore
) -> tuple[PostgresRetention, Retention]:
    store = PostgresRetention(database)
    retention = Retention(
        store,
        objects,
        settings.retention_days,
        identifier_days=settings.keep_task_ids_days,
        share=settings.retention_share,
    )
    return store, retention


def _retention_loops(retention: Retention, interval_seconds: float) -> list[Loop]:
    return [
        retention.identifiers.loop("tasks-old-identifiers", interval_seconds),
        *(pruning.loop(f"tasks-old-{kind.lower()}", interval_seconds) for kind, pruning in retention.prunings.items()),
    ]


def _usage_loops(usage: PostgresUsage, objects: ObjectStore) -> list[Loop]:
    # Files of trainings lie beside those of tasks.
    types = {spec.prefix: name for name, spec in TASK_TYPES.items()} | {"trainings": JobKind.TRAINING.value}
    measure = StorageMeasure(usage, objects, types)
    return [Loop("tasks-usage", usage.fold, 5.0), Loop("tasks-storage", measure.measure, MEASURE_SECONDS)]


def _quotas(
    settings: TasksSettings, store: PostgresTaskStore, objects: ObjectStore, stack: AsyncExitStack
) -> TenantQuotas:
    stored = StoredBytes(objects, settings.tenant_storage_bytes)
    stack.push_async_callback(stored.close)
    return TenantQuotas(store, stored, settings, settings.gate_limits)
