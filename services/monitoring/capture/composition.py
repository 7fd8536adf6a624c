"""Capture put together: what `__main__` runs and what the tests start."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from atelier.monitoring.v1 import (
    capture_alert_service_pb2_grpc,
    capture_camera_service_pb2_grpc,
    capture_event_service_pb2_grpc,
    capture_photo_service_pb2_grpc,
    health_pb2,
)

from meshkit import db as meshdb
from meshkit.auth import ServiceTokens
from meshkit.bus import Bus
from meshkit.channel import MeshChannel
from meshkit.db import Database
from meshkit.health import HealthPart, PartStates
from meshkit.loops import Loop, Loops, LoopState
from meshkit.metrics import serve_metrics
from meshkit.objects import ObjectStore, open_configured
from meshkit.outbox import Relay
from meshkit.server import build_server
from meshkit.supervision import supervise
from meshkit.topology import CAPTURE
from services.monitoring.capture.access import CaptureAccess
from services.monitoring.capture.alerts.service import AlertDesk, WebhookHandovers
from services.monitoring.capture.alerts.servicer import AlertServicer
from services.monitoring.capture.alerts.webhook_calls import WebhookCalls
from services.monitoring.capture.analysis.rules import RulesError, read_rules
from services.monitoring.capture.analysis.service import AnalysisWorker, EventDesk
from services.monitoring.capture.analysis.servicer import EventServicer
from services.monitoring.capture.analysis.text_calls import TextCalls, TextSource
from services.monitoring.capture.batches.service import BatchAggregator
from services.monitoring.capture.cameras.service import CameraDesk
from services.monitoring.capture.cameras.servicer import CameraServicer
from services.monitoring.capture.cleanup.files import PhotoFiles
from services.monitoring.capture.cleanup.service import CleanupService
from services.monitoring.capture.config import CaptureSettings
from services.monitoring.capture.detection.service import TASK_ENDED, DetectionWorker
from services.monitoring.capture.detection.task_calls import DetectionTasks
from services.monitoring.capture.errors import bad_rules, bad_workflow, no_camera_root
from services.monitoring.capture.photos.service import PhotoDesk
from services.monitoring.capture.photos.servicer import PhotoServicer
from services.monitoring.capture.postgres.alerts import PostgresAlertStore
from services.monitoring.capture.postgres.batches import PostgresBatchStore
from services.monitoring.capture.postgres.cameras import PostgresCameraStore
from services.monitoring.capture.postgres.changes import CaptureChanges
from services.monitoring.capture.postgres.cleanup import PostgresForgettingStore
from services.monitoring.capture.postgres.detections import PostgresDetectionStore
from services.monitoring.capture.postgres.events import PostgresEventStore
from services.monitoring.capture.postgres.photos import PostgresPhotoStore
from services.monitoring.capture.postgres.runs import PostgresRunStore
from services.monitoring.capture.watching.files import has_folder
from services.monitoring.capture.watching.service import FileWatcher, WatchLimits

if TYPE_CHECKING:
    from services.monitoring.capture.runs.service import HotFolder


@dataclass(frozen=True, slots=True)
class CaptureRuntime:
    """A running service; its parts are for tests that call a loop's body themselves."""

    address: str
    database: Database
    bus: Bus
    relay: Relay
    changes: CaptureChanges
    watcher: FileWatcher
    aggregator: BatchAggregator
    detection: DetectionWorker | None


async def start(settings: CaptureSettings, stack: AsyncExitStack) -> CaptureRuntime:
    """Start the service; the stack stops it.

    Args:
        settings: Its settings.
        stack: Closed in reverse order at the end.

    Raises:
        MeshError: The rules do not hold.
        ValueError: The settings name no folder to watch.
    """
    if settings.camera_root is None:
        raise no_camera_root()
    try:
        rules = read_rules(settings.capture_rules)
    except RulesError as error:
        raise bad_rules(str(error)) from None
    await meshdb.migrate(settings.database_url.get_secret_value(), CAPTURE.schema, CAPTURE.migrations)
    database = Database.from_settings(settings, schema=CAPTURE.schema)
    await database.open()
    stack.push_async_callback(database.close)
    bus = Bus(settings.nats_url.get_secret_value(), name="atelier-capture", replicas=settings.nats_replicas)
    await bus.connect()
    stack.push_async_callback(bus.close)
    relay = Relay(database, bus)
    stack.push_async_callback(relay.close)

    access = CaptureAccess(settings.capture_tenant)
    changes = CaptureChanges(database, settings.capture_tenant, relay.wake)
    cameras, photos, batches = PostgresCameraStore(changes), PostgresPhotoStore(changes), PostgresBatchStore(changes)
    events, alerts = PostgresEventStore(changes), PostgresAlertStore(changes)
    tokens = ServiceTokens.from_settings(settings, CAPTURE.role, CAPTURE.scopes)
    tasks = MeshChannel.from_settings(settings, settings.tasks_address, tokens.token)
    stack.push_async_callback(tasks.close)
    handovers = WebhookHandovers(alerts, WebhookCalls(tasks, settings.capture_tenant))
    webhook_url = settings.capture_webhook_url
    analysis = AnalysisWorker(
        events,
        rules,
        _model(settings, tasks),
        answer_seconds=settings.capture_summary_seconds,
        webhook_url=webhook_url,
        on_alerts=handovers.loop.wake,
    )
    cleanup = CleanupService(
        PostgresForgettingStore(changes, runs=settings.capture_workflow is not None),
        PhotoFiles(settings.camera_root, deletes=settings.capture_delete_files),
        keep_days=settings.capture_keep_days,
        keep_bytes=settings.capture_keep_bytes,
        interval_seconds=settings.capture_cleanup_seconds,
    )
    aggregator = BatchAggregator(
        batches,
        window_seconds=settings.capture_batch_seconds,
        idle_seconds=settings.capture_idle_seconds,
        on_closed=analysis.wake,
    )

    def on_photos() -> None:
        aggregator.loop.wake()
        if detection is not None:
            detection.loop.wake()

    watcher = FileWatcher(
        settings.camera_root.resolve(),
        settings.capture_observer,
        _limits(settings),
        photos=photos,
        cameras=cameras,
        on_photos=on_photos,
    )
    stack.push_async_callback(watcher.close)
    objects = open_configured(settings, stack)
    hot_folder = _hot_folder(settings, changes, objects, tokens, stack)
    detection = _detection(settings, changes, objects, tasks, hot_folder, watcher.missed)
    loops = Loops(watcher.loop, aggregator.loop, analysis.loop, handovers.loop, cleanup.loop, relay.loop)
    _add(loops, detection, hot_folder)
    if settings.run_loops:
        await _hear(bus, detection)
        await supervise(stack, loops, bus, CAPTURE.role)
    parts = PartStates(
        [HealthPart("postgresql", database.ping, every_call=True), HealthPart("nats", bus.ping, essential=False)],
        lambda: [f"loops/{name}" for name in (*loops.ailing, *_waiting(detection, hot_folder), *_stuck(cleanup))],
    )
    camera_servicer = CameraServicer(
        CameraDesk(cameras, access, watcher.look_again, partial(has_folder, watcher.root)),
        tenant=settings.capture_tenant,
        watcher=lambda: _watcher_state(watcher, running=_runs(loops, watcher.loop)),
        aggregator=aggregator.state,
    )
    server = build_server(
        settings,
        CAPTURE,
        [
            (capture_camera_service_pb2_grpc.add_CameraServiceServicer_to_server, camera_servicer),
            (
                capture_photo_service_pb2_grpc.add_PhotoServiceServicer_to_server,
                PhotoServicer(PhotoDesk(photos, batches, access), PostgresRunStore(changes).find_run),
            ),
            (
                capture_event_service_pb2_grpc.add_EventServiceServicer_to_server,
                EventServicer(EventDesk(events, access)),
            ),
            (
                capture_alert_service_pb2_grpc.add_AlertServiceServicer_to_server,
                AlertServicer(
                    AlertDesk(alerts, access, lambda name: rules.webhook_of(name) or webhook_url, handovers.loop.wake)
                ),
            ),
        ],
        parts,
    )
    await server.start()
    stack.push_async_callback(server.stop)
    page = serve_metrics(settings.metrics_port, settings.metrics_host)
    if page is not None:
        stack.callback(page.close)
    return CaptureRuntime(server.address, database, bus, relay, changes, watcher, aggregator, detection)


def _add(loops: Loops, *of: DetectionWorker | HotFolder | None) -> None:
    for one in of:
        if one is not None:
            loops.add(one.loop)


def _waiting(*of: DetectionWorker | HotFolder | None) -> list[str]:
    """Return the names of loops that run well, but have waited for a while for a service that is away."""
    return [one.loop.name for one in of if one is not None and one.outage.lasts]


def _stuck(cleanup: CleanupService) -> list[str]:
    """Return the name of the loop whose files cannot be deleted."""
    return [cleanup.loop.name] if cleanup.stuck else []


async def _hear(bus: Bus, detection: DetectionWorker | None) -> None:
    if detection is not None:
        for subject in TASK_ENDED:
            await bus.subscribe(subject, detection.notice)


def _limits(settings: CaptureSettings) -> WatchLimits:
    return WatchLimits(
        settle_seconds=settings.capture_settle_seconds,
        quiet_seconds=settings.capture_quiet_seconds,
        scan_seconds=settings.capture_scan_seconds,
        poll_seconds=settings.capture_poll_seconds,
        max_bytes=settings.photo_bytes,
        offline_seconds=settings.camera_offline_seconds,
    )


def _runs(loops: Loops, loop: Loop) -> bool:
    return any(one.loop is loop and one.state is LoopState.RUNNING for one in loops.kept)


def _watcher_state(watcher: FileWatcher, *, running: bool) -> health_pb2.FileWatcherStatus:
    return health_pb2.FileWatcherStatus(
        running=running,
        camera_root=str(watcher.root),
        pending_tasks=watcher.pending,
        observer_type=watcher.observer_type,
    )


def _model(settings: CaptureSettings, tasks: MeshChannel) -> TextCalls | None:
    if settings.capture_summary == "NONE":
        return None
    source = TextSource(settings.capture_summary, settings.capture_summary_config)
    return TextCalls(
        tasks,
        source,
        tenant=settings.capture_tenant,
        instance=settings.capture_instance,
        zone=settings.capture_zone,
    )


def _hot_folder(
    settings: CaptureSettings,
    changes: CaptureChanges,
    objects: ObjectStore | None,
    tokens: ServiceTokens,
    stack: AsyncExitStack,
) -> HotFolder | None:
    """Return what runs a workflow for each photo; None without a workflow, or without an object store."""
    if settings.capture_workflow is None:
        return None
    # Only where it is used: the contracts of workflows, and what reads them, take a good part of the memory.
    from services.monitoring.capture.runs.service import HotFolder, read_run_file  # noqa: PLC0415 -- as above
    from services.monitoring.capture.runs.workflow_calls import RunWorkflows  # noqa: PLC0415 -- as above

    try:
        run_file = read_run_file(settings.capture_workflow, settings.capture_instance, settings.capture_zone)
    except ValueError as error:
        raise bad_workflow(str(error)) from None
    if objects is None:
        return None
    channel = MeshChannel.from_settings(settings, settings.workflows_address, tokens.token)
    stack.push_async_callback(channel.close)
    workflows = RunWorkflows(channel, objects, settings.capture_tenant)
    return HotFolder(PostgresRunStore(changes), workflows, run_file, settings.capture_tenant)


def _detection(  # noqa: PLR0917 -- what it is put together of
    settings: CaptureSettings,
    changes: CaptureChanges,
    objects: ObjectStore | None,
    to_tasks: MeshChannel,
    hot_folder: HotFolder | None,
    on_missed: Callable[[bytes], None],
) -> DetectionWorker | None:
    """Return what has photos looked at; None without an object store, by which tasks are given photos."""
    if settings.camera_root is None or objects is None:
        return None
    tasks = DetectionTasks(
        to_tasks,
        objects,
        tenant=settings.capture_tenant,
        instance=settings.capture_instance,
        zone=settings.capture_zone,
    )
    return DetectionWorker(
        PostgresDetectionStore(changes, runs=hot_folder is not None),
        tasks,
        settings.camera_root.resolve(),
        at_once=settings.capture_detections_at_once,
        most_bytes=settings.photo_bytes,
        on_detected=hot_folder.loop.wake if hot_folder is not None else lambda: None,
        on_missed=on_missed,
    )
