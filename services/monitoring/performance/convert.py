"""Snapshots as messages."""

from __future__ import annotations

from collections.abc import Sequence

from atelier.monitoring.v1 import health_pb2, performance_pb2, system_service_pb2

from meshkit.moments import assign
from services.monitoring.performance.domain import (
    GIGABYTE,
    GpuTotals,
    ModelTotals,
    Snapshot,
    WorkView,
    gpu_totals,
    model_totals,
)

_HEALTHY, _UNHEALTHY = health_pb2.PART_STATUS_HEALTHY, health_pb2.PART_STATUS_UNHEALTHY


def to_history(snapshots: Sequence[Snapshot], time_range: str) -> system_service_pb2.ListPerformanceHistoryResponse:
    """Return snapshots, oldest first."""
    return system_service_pb2.ListPerformanceHistoryResponse(
        snapshots=[to_performance(one) for one in snapshots], time_range=time_range, count=len(snapshots)
    )


def to_performance(snapshot: Snapshot) -> performance_pb2.PerformanceSnapshot:
    """Return a snapshot. What names a part of another product stays unset."""
    message = performance_pb2.PerformanceSnapshot()
    assign(message.timestamp, snapshot.at)
    if snapshot.work is not None:
        gpu = gpu_totals(snapshot.work.workers)
        if gpu is not None:
            message.gpu.CopyFrom(_gpu(gpu))
        for one in model_totals(snapshot.work.workers):
            message.ai_models[one.name].CopyFrom(_model(one))
        _write_inference(message.inference, snapshot, snapshot.work)
    _write_databases(message.databases, snapshot)
    host = snapshot.host
    message.host.CopyFrom(
        performance_pb2.HostPerformance(
            cpu_percent=host.cpu_percent,
            ram_used_gb=host.ram_used_gb,
            ram_total_gb=host.ram_total_gb,
            ram_percent=host.ram_percent,
            disk_used_gb=host.disk_used_gb,
            disk_total_gb=host.disk_total_gb,
            disk_percent=host.disk_percent,
        )
    )
    for found in snapshot.alerts:
        message.alerts.add(
            severity=performance_pb2.AlertSeverity.Value(f"ALERT_SEVERITY_{found.severity.name}"),
            metric=found.metric,
            value=found.value,
            threshold=found.threshold,
            message=found.message,
        )
    return message


def _gpu(gpu: GpuTotals) -> performance_pb2.GpuPerformance:
    return performance_pb2.GpuPerformance(
        name=gpu.name,
        utilization=gpu.utilization,
        vram_used_gb=gpu.vram_used_gb,
        vram_total_gb=gpu.vram_total_gb,
        vram_percent=gpu.vram_percent,
        temperature=gpu.temperature,
        power_watts=gpu.power_watts,
    )


def _model(one: ModelTotals) -> performance_pb2.ModelPerformance:
    return performance_pb2.ModelPerformance(
        status="healthy",
        vram_gb=one.vram_bytes / GIGABYTE if one.vram_bytes is not None else None,
        model=one.name,
        device=", ".join(one.devices),
        memory_gb=one.bytes / GIGABYTE,
        workers=one.workers,
    )


def _write_inference(target: performance_pb2.InferencePerformance, snapshot: Snapshot, work: WorkView) -> None:
    target.SetInParent()
    if work.times is not None:
        latency = target.pipeline_latency_ms
        latency.avg, latency.p95, latency.p99 = work.times.avg, work.times.p95, work.times.p99
    if snapshot.throughput is not None:
        target.throughput.images_per_min = snapshot.throughput.images
        target.throughput.events_per_min = snapshot.throughput.jobs
        target.throughput.SetInParent()
    target.waiting.update(work.waiting)


def _write_databases(target: performance_pb2.DatabasesPerformance, snapshot: Snapshot) -> None:
    database = snapshot.database
    target.postgres.status = _HEALTHY if database is not None else _UNHEALTHY
    if database is not None:
        target.postgres.connections_active = database.connections
        target.postgres.connections_max = database.most_connections
        if database.hit_percent is not None:
            target.postgres.cache_hit_ratio = database.hit_percent
        if snapshot.transactions_per_min is not None:
            target.postgres.transactions_per_min = snapshot.transactions_per_min
    target.nats.status = _HEALTHY if snapshot.nats_version is not None else _UNHEALTHY
    if snapshot.nats_version:
        target.nats.version = snapshot.nats_version
