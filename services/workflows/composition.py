"""The service put together: what `__main__` runs and what the tests start."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

from atelier.tasks.v1 import retention_pb2
from atelier.workflows.v1 import monitoring_service_pb2_grpc, workflows_service_pb2_grpc

from meshkit import db as meshdb
from meshkit.auth import ServiceTokens
from meshkit.bus import Bus
from meshkit.channel import MeshChannel
from meshkit.db import Database
from meshkit.fetcher import Fetcher
from meshkit.health import HealthPart, PartStates
from meshkit.images.checks import ImageChecks
from meshkit.lingers import TASK_EVENT_LINGER, WORKFLOWS_RELAY_LINGER
from meshkit.logging import get_logger
from meshkit.loops import Loops, coalesced
from meshkit.metrics import serve_metrics
from meshkit.objects import ObjectStore, open_configured
from meshkit.outbox import Relay
from meshkit.retention import Pruning
from meshkit.retention_calls import TaskHolds, asked_ages
from meshkit.server import build_server
from meshkit.stored_bytes import StoredBytes
from meshkit.supervision import supervise
from meshkit.topology import WORKFLOWS
from services.workflows.config import WorkflowsSettings
from services.workflows.events import TASK_ENDED, TASK_ENDED_NOTICE, TRAINING_ENDED
from services.workflows.executor import WorkflowExecutor
from services.workflows.files import StepFiles
from services.workflows.loops import WorkflowMaintenance
from services.workflows.postgres.retention import PostgresOldWorkflows
from services.workflows.postgres.store import PostgresWorkflowStore
from services.workflows.retention import OldWorkflows
from services.workflows.service import WorkflowsService
from services.workflows.servicer import WorkflowMonitoringServicer, WorkflowsServicer
from services.workflows.task_calls import TaskCalls
from services.workflows.task_events import TaskEventConsumer
from services.workflows.training_calls import TrainingCalls
from services.workflows.training_events import TrainingEventConsumer

_log = get_logger(__name__)

DURABLE = "workflows-task-ends"
TRAINING_DURABLE = "workflows-training-ends"
# Replicas share the notices.
QUEUE = "workflows"


@dataclass(frozen=True, slots=True)
class WorkflowsRuntime:
    """A running service; its parts are for tests that call a loop's body themselves."""

    address: str
    maintenance: WorkflowMaintenance
    executor: WorkflowExecutor
    retention: Pruning
    holds: TaskHolds
    relay: Relay
    database: Database


async def start(settings: WorkflowsSettings, stack: AsyncExitStack) -> WorkflowsRuntime:
    """Start the service; the stack stops it.

    Args:
        settings: Its settings.
        stack: Closed in reverse order at the end.
    """
    tokens = ServiceTokens.from_settings(settings, WORKFLOWS.role, WORKFLOWS.scopes)
    await meshdb.migrate(settings.database_url.get_secret_value(), WORKFLOWS.schema, WORKFLOWS.migrations)
    database = Database.from_settings(settings, schema=WORKFLOWS.schema)
    await database.open()
    stack.push_async_callback(database.close)
    bus = Bus(settings.nats_url.get_secret_value(), replicas=settings.nats_replicas)
    await bus.connect()
    stack.push_async_callback(bus.close)
    channel = MeshChannel.from_settings(settings, settings.tasks_address, tokens.token)
    stack.push_async_callback(channel.close)

    store = PostgresWorkflowStore(database, page_bytes=settings.answer_bytes)
    tasks = TaskCalls(channel, catalog_ttl_seconds=settings.catalog_ttl_seconds)
    relay = Relay(database, bus)
    stack.push_async_callback(relay.close)
    training_channel = MeshChannel.from_settings(settings, settings.training_address, tokens.token)
    stack.push_async_callback(training_channel.close)
    executor = WorkflowExecutor(
        store,
        tasks,
        TrainingCalls(training_channel),
        clock=_now,
        on_commit=coalesced(relay.wake, WORKFLOWS_RELAY_LINGER),
        concurrency=settings.dispatch_concurrency,
        abandon_seconds=settings.abandon_seconds,
    )
    stack.push_async_callback(executor.close)
    objects = open_configured(settings, stack)
    files = None if objects is None else _files(settings, objects, stack)
    workflows = WorkflowsService(
        store,
        executor,
        tasks,
        fetcher=Fetcher.from_settings(settings),
        clock=_now,
        limits=settings.free_form_limits,
        files=files,
    )
    old_rows = PostgresOldWorkflows(database)
    old = OldWorkflows(old_rows, tasks, objects)
    holds = TaskHolds(channel, old_rows.open_requests)
    retention = Pruning(
        "workflows", old, asked_ages(channel, retention_pb2.RETENTION_KIND_WORKFLOWS), share=settings.retention_share
    )
    maintenance = WorkflowMaintenance(store, executor, bus, settings, files)
    task_events = TaskEventConsumer(store, executor.tell_ended, executor.ask)
    stack.push_async_callback(task_events.close)
    loops = Loops(
        *maintenance.loops(),
        retention.loop("workflows-old", settings.retention_interval_seconds),
        holds.loop("workflows-holds"),
        relay.loop,
    )
    if settings.run_loops:
        await supervise(stack, loops, bus, WORKFLOWS.role)
        await bus.subscribe(TASK_ENDED_NOTICE, task_events.notice, queue=QUEUE)
        consumer = await bus.consume_batches(
            DURABLE,
            TASK_ENDED,
            task_events.batch,
            linger=TASK_EVENT_LINGER,
            on_made=executor.trust_events,
        )
        stack.callback(consumer.cancel)
        trained = await bus.consume_batches(
            TRAINING_DURABLE,
            TRAINING_ENDED,
            TrainingEventConsumer(store, executor.ask).batch,
            linger=TASK_EVENT_LINGER,
        )
        stack.callback(trained.cancel)
    stands_on = [
        HealthPart("postgresql", database.ping, every_call=True),
        HealthPart("nats", bus.ping, essential=False),
    ]
    if objects is not None:
        # Files come with few definitions.
        stands_on.append(HealthPart("object_store", objects.ping, essential=False))
    parts = PartStates(
        stands_on,
        lambda: [f"loops/{name}" for name in loops.ailing],
    )
    server = build_server(
        settings,
        WORKFLOWS,
        [
            (
                workflows_service_pb2_grpc.add_WorkflowsServiceServicer_to_server,
                WorkflowsServicer(workflows),
            ),
            (
                monitoring_service_pb2_grpc.add_WorkflowMonitoringServiceServicer_to_server,
                WorkflowMonitoringServicer(workflows, retention),
            ),
        ],
        parts,
    )
    await server.start()
    stack.push_async_callback(server.stop)
    page = serve_metrics(settings.metrics_port, settings.metrics_host)
    if page is not None:
        stack.callback(page.close)
    return WorkflowsRuntime(server.address, maintenance, executor, retention, holds, relay, database)


def _files(settings: WorkflowsSettings, objects: ObjectStore, stack: AsyncExitStack) -> StepFiles:
    checks = ImageChecks.from_settings(settings)
    stack.push_async_callback(checks.close)
    stored = StoredBytes(objects, settings.tenant_storage_bytes)
    stack.push_async_callback(stored.close)
    return StepFiles(objects, checks, stored)


def _now() -> datetime:
    return datetime.now(UTC)
