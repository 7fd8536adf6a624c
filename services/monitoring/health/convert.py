"""The health of parts as messages."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from datetime import datetime

from atelier.monitoring.v1 import health_pb2, system_service_pb2

from meshkit.loops import LoopState
from meshkit.moments import assign
from services.monitoring.health.domain import (
    BreakerView,
    CircuitState,
    Mode,
    PartFinding,
    PartKind,
    Survey,
    WholeState,
)
from services.monitoring.health.watch import DegradationWatch
from services.monitoring.supervision.domain import LoopOverview

_HEALTHY, _UNHEALTHY = health_pb2.PART_STATUS_HEALTHY, health_pb2.PART_STATUS_UNHEALTHY
_WORKS = {PartKind.STORE: "Database operational", PartKind.BUS: "NATS connected"}


def to_health(
    survey: Survey,
    loops: Sequence[LoopOverview],
    verdict: WholeState,
    away: Sequence[str],
    *,
    critical: Collection[str],
    version: str,
) -> health_pb2.FullHealth:
    """Return the health of all parts."""
    health = health_pb2.FullHealth(
        status=health_pb2.PartStatus.Value(f"PART_STATUS_{verdict.name}"),
        ready=verdict is not WholeState.UNHEALTHY,
        message=_message(verdict, away),
        version=version,
    )
    for one in survey.parts:
        if one.kind is PartKind.STORE:
            _write_infrastructure(health.postgres, one)
        elif one.kind is PartKind.BUS:
            _write_infrastructure(health.redis, one)
        else:
            _write_service(health.ai_services.add(), one, survey.at)
    _write_breakers(health.circuit_breakers, survey.breakers or ())
    for loop in loops:
        health.workers.add(name=loop.name, running=loop.state is LoopState.RUNNING, critical=loop.name in critical)
    assign(health.timestamp, survey.at)
    return health


def to_pipeline(watch: DegradationWatch, now: datetime) -> health_pb2.PipelineStatus:
    """Return what works less well than it should."""
    pipeline = health_pb2.PipelineStatus()
    status = pipeline.degradation
    status.mode = health_pb2.DegradationMode.Value(f"DEGRADATION_MODE_{watch.mode.name}")
    status.is_degraded = watch.mode is not Mode.NORMAL
    status.redis_healthy = all(one.healthy for one in watch.parts.values() if one.kind is PartKind.BUS)
    for queue, waiting in (watch.survey.stranded if watch.survey is not None else {}).items():
        status.fallback_queues[queue] = waiting
    for one in watch.parts.values():
        service = status.services.add(
            name=one.name,
            status=_HEALTHY if one.healthy else _UNHEALTHY,
            consecutive_failures=one.failures,
            error_message=one.error,
        )
        if one.checked_at is not None:
            assign(service.last_check, one.checked_at)
    status.available_features.extend(watch.features())
    assign(pipeline.timestamp, now)
    return pipeline


def to_breakers(breakers: Sequence[BreakerView], now: datetime) -> system_service_pb2.ListCircuitBreakersResponse:
    """Return all breakers."""
    response = system_service_pb2.ListCircuitBreakersResponse(
        total_count=len(breakers), open_count=sum(one.state is CircuitState.OPEN for one in breakers)
    )
    for one in breakers:
        message = response.circuit_breakers[one.name]
        message.name = one.name
        message.state = to_state(one.state)
        message.failure_count, message.success_count = one.failure_count, one.success_count
        message.total_calls, message.rejected_calls = one.total_calls, one.rejected_calls
        if one.last_failure_at is not None:
            message.last_failure_time = _monotonic(one.last_failure_at, now)
        if one.opened_at is not None:
            message.opened_at = _monotonic(one.opened_at, now)
        message.config.failure_threshold = one.policy.failure_threshold
        message.config.recovery_timeout = one.policy.recovery_timeout
        message.config.half_open_max_calls = one.policy.half_open_max_calls
        message.config.success_threshold = one.policy.success_threshold
    assign(response.timestamp, now)
    return response


def to_state(state: CircuitState) -> health_pb2.CircuitState.ValueType:
    """Return a breaker's state for the wire."""
    return health_pb2.CircuitState.Value(f"CIRCUIT_STATE_{state.name}")


def _monotonic(moment: datetime, now: datetime) -> float:
    return time.monotonic() - (now - moment).total_seconds()


def _message(verdict: WholeState, away: Sequence[str]) -> str:
    if verdict is WholeState.HEALTHY:
        return "All systems operational"
    what = "Critical parts are" if verdict is WholeState.UNHEALTHY else "Parts that are not critical are"
    return f"{what} unhealthy: {', '.join(away)}"


def _write_infrastructure(target: health_pb2.InfrastructureHealth, one: PartFinding) -> None:
    target.name = one.name
    target.status = _HEALTHY if one.error is None else _UNHEALTHY
    target.message = _WORKS[one.kind] if one.error is None else one.error
    if one.details:
        target.details.update(one.details)


def _write_service(target: health_pb2.AiServiceHealth, one: PartFinding, at: datetime) -> None:
    target.name, target.display_name, target.url = one.name, one.display_name, one.url
    target.status = _HEALTHY if one.error is None else _UNHEALTHY
    if one.seconds is not None:
        target.response_time_ms = round(one.seconds * 1000, 3)
    if one.error is not None:
        target.error = one.error
    target.circuit_state = one.circuit.value
    assign(target.last_check, at)


def _write_breakers(target: health_pb2.BreakersHealth, breakers: Sequence[BreakerView]) -> None:
    target.total = len(breakers)
    target.open = sum(one.state is CircuitState.OPEN for one in breakers)
    target.half_open = sum(one.state is CircuitState.HALF_OPEN for one in breakers)
    target.closed = sum(one.state is CircuitState.CLOSED for one in breakers)
    for one in breakers:
        target.breakers[one.name] = one.state.value
