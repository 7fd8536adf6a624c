"""The service put together: what `__main__` runs and what the tests start."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

from atelier.monitoring.v1 import loops_pb2, system_service_pb2_grpc

from meshkit import db as meshdb
from meshkit.auth import ServiceTokens
from meshkit.bus import Bus, BusMessage
from meshkit.certificates import CertificateFiles, MeshCertificate
from meshkit.channel import MeshChannel
from meshkit.db import Database
from meshkit.health import HealthPart, PartStates
from meshkit.loops import Loops
from meshkit.metrics import serve_metrics
from meshkit.server import build_server
from meshkit.supervision import REPORTS, supervise
from meshkit.topology import MONITORING
from services.monitoring.capture_calls import CaptureFigures
from services.monitoring.config import MonitoringSettings
from services.monitoring.health.probes import Infrastructure, Probes
from services.monitoring.health.watch import DegradationWatch
from services.monitoring.performance.watch import HostGauge, PerformanceWatch, Sources
from services.monitoring.postgres.activity import DatabaseActivity
from services.monitoring.postgres.loops import PostgresLoopStore
from services.monitoring.prometheus import PrometheusStack
from services.monitoring.scaler.demand import SchedulersDemand
from services.monitoring.scaler.server import ScalerServer
from services.monitoring.scaler.service import ScalerDesk
from services.monitoring.servicer import SystemServicer
from services.monitoring.supervision import convert
from services.monitoring.supervision.service import Supervisor
from services.monitoring.task_calls import TaskFigures


@dataclass(frozen=True, slots=True)
class MonitoringRuntime:
    """A running service; its parts are for tests that call a loop's body themselves."""

    address: str
    supervisor: Supervisor
    watch: DegradationWatch
    performance: PerformanceWatch
    database: Database
    bus: Bus
    scaler: ScalerServer | None


async def start(settings: MonitoringSettings, stack: AsyncExitStack) -> MonitoringRuntime:
    """Start the service; the stack stops it.

    Args:
        settings: Its settings.
        stack: Closed in reverse order at the end.
    """
    tokens = ServiceTokens.from_settings(settings, MONITORING.role, MONITORING.scopes)
    await meshdb.migrate(settings.database_url.get_secret_value(), MONITORING.schema, MONITORING.migrations)
    database = Database.from_settings(settings, schema=MONITORING.schema)
    await database.open()
    stack.push_async_callback(database.close)
    bus = Bus(settings.nats_url.get_secret_value(), replicas=settings.nats_replicas)
    await bus.connect()
    stack.push_async_callback(bus.close)

    supervisor = Supervisor(
        PostgresLoopStore(database), bus, convert.to_wishes, history_days=settings.loop_history_days
    )

    async def on_report(message: BusMessage) -> None:
        report = loops_pb2.LoopReport.FromString(message.data)
        supervisor.hear(report.replica, report.role, *convert.of_report(report))

    await bus.subscribe(f"{REPORTS}.*", on_report)
    supervisor.ask()
    channels = {role: _channel(settings, stack, tokens, address) for role, address in _addresses(settings).items()}
    tasks = TaskFigures(channels["tasks"])
    probes = Probes(
        Infrastructure(database.ping, bus.ping, lambda: bus.server_version),
        {role: (channels[role], address) for role, address in _addresses(settings).items()},
        tasks,
        critical_queues=settings.critical_queues,
        clock=lambda: datetime.now(UTC),
    )
    watch = DegradationWatch(probes)
    prometheus = PrometheusStack(settings.prometheus_url)
    stack.push_async_callback(prometheus.close)

    async def nats_version() -> str:
        await bus.ping()
        return bus.server_version

    performance = PerformanceWatch(Sources(HostGauge().read, tasks.work, DatabaseActivity(database).read, nats_version))
    loops = Loops(*supervisor.loops(), watch.loop(), performance.loop())
    await supervise(stack, loops, bus, MONITORING.role)
    parts = PartStates(
        [HealthPart("postgresql", database.ping, every_call=True), HealthPart("nats", bus.ping, essential=False)],
        lambda: [f"loops/{name}" for name in loops.ailing],
    )
    capture = CaptureFigures(channels["capture"]) if "capture" in channels else None
    servicer = SystemServicer(
        supervisor,
        probes,
        watch,
        tasks,
        prometheus,
        performance=performance,
        capture=capture,
        version=version("atelier"),
    )
    server = build_server(
        settings, MONITORING, [(system_service_pb2_grpc.add_SystemServiceServicer_to_server, servicer)], parts
    )
    await server.start()
    stack.push_async_callback(server.stop)
    scaler = await _scaler(settings, stack) if settings.scaler_listen else None
    page = serve_metrics(settings.metrics_port, settings.metrics_host)
    if page is not None:
        stack.callback(page.close)
    return MonitoringRuntime(server.address, supervisor, watch, performance, database, bus, scaler)


async def _scaler(settings: MonitoringSettings, stack: AsyncExitStack) -> ScalerServer:
    tokens = ServiceTokens.from_settings(settings, MONITORING.role, MONITORING.scopes)
    channel = MeshChannel.from_settings(settings, settings.tasks_address, tokens.token)
    stack.push_async_callback(channel.close)
    scaler = ScalerServer(
        ScalerDesk(SchedulersDemand(channel).read),
        settings.scaler_listen,
        certificate=_scaler_certificate(settings),
        grace_seconds=settings.shutdown_grace_seconds,
    )
    await scaler.start()
    stack.push_async_callback(scaler.stop)
    return scaler


def _scaler_certificate(settings: MonitoringSettings) -> MeshCertificate | None:
    certificate, key, authority = settings.scaler_certificate, settings.scaler_key, settings.scaler_client_ca
    if certificate is None or key is None or authority is None:
        return None
    names = ("ATELIER_SCALER_CERTIFICATE", "ATELIER_SCALER_KEY", "ATELIER_SCALER_CLIENT_CA")
    return MeshCertificate(CertificateFiles(certificate, key, authority, names))


def _addresses(settings: MonitoringSettings) -> dict[str, str]:
    return {
        "tasks": settings.tasks_address,
        "workflows": settings.workflows_address,
        "training": settings.training_address,
        # What a mesh may do without is asked where it is there.
        **({"evaluation": settings.evaluation_address} if settings.evaluation_address else {}),
        **({"capture": settings.capture_address} if settings.capture_address else {}),
    }


def _channel(settings: MonitoringSettings, stack: AsyncExitStack, tokens: ServiceTokens, address: str) -> MeshChannel:
    channel = MeshChannel.from_settings(settings, address, tokens.token)
    stack.push_async_callback(channel.close)
    return channel
