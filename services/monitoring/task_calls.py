"""The tasks service as this one needs it: queues, what workers tell, and the breakers before providers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from atelier.tasks.v1 import enums_pb2, monitoring_service_pb2, tasks_service_pb2, worker_service_pb2
from atelier.tasks.v1.monitoring_service_pb2_grpc import TaskMonitoringServiceStub
from atelier.tasks.v1.tasks_service_pb2_grpc import TasksServiceStub

from meshkit.catalog import PROVIDERS
from meshkit.channel import MeshChannel
from meshkit.errors import ErrorKind, MeshError
from services.monitoring.health.domain import BreakerPolicyView, BreakerView, CircuitState, QueueView
from services.monitoring.performance.domain import GpuView, ModelView, Times, WorkerTold, WorkView

_STATES = {tasks_service_pb2.BreakerState.Value(f"BREAKER_STATE_{state.name}"): state for state in CircuitState}
_SPELLINGS = {spec.number: name for name, spec in PROVIDERS.items()}


class TaskFigures:
    """Calls the tasks service, as an operator.

    Args:
        channel: Channel to it.
    """

    def __init__(self, channel: MeshChannel) -> None:
        self._tasks = channel.stub(TasksServiceStub)
        self._monitoring = channel.stub(TaskMonitoringServiceStub)

    async def queues(self, seconds: float) -> list[QueueView]:
        """Return all queues.

        Raises:
            MeshError: The service does not answer.
        """
        answer = await self._monitoring.GetQueueStats(monitoring_service_pb2.GetQueueStatsRequest(), timeout=seconds)
        return [QueueView(one.name, one.depth, one.active_workers) for one in answer.queues]

    async def work(self, seconds: float) -> WorkView:
        """Return how fast tasks are done, and what workers tell of themselves.

        Raises:
            MeshError: The service does not answer.
        """
        answer = await self._monitoring.GetWorkFigures(monitoring_service_pb2.GetWorkFiguresRequest(), timeout=seconds)
        times = Times(answer.times.avg_ms, answer.times.p95_ms, answer.times.p99_ms)
        return WorkView(
            times if answer.HasField("times") else None, dict(answer.waiting), [_told(one) for one in answer.workers]
        )

    async def breakers(self, seconds: float) -> tuple[list[BreakerView], dict[str, str]]:
        """Return the breakers before all providers that are served and called, also where none was called yet.

        Returns:
            The breakers, and the queue of each provider.

        Raises:
            MeshError: The service does not answer.
        """
        answer = await self._tasks.ListProviders(tasks_service_pb2.ListProvidersRequest(), timeout=seconds)
        breakers: list[BreakerView] = []
        queues: dict[str, str] = {}
        for one in answer.providers:
            # What this mesh computes itself passes no breaker.
            if one.HasField("breaker") and (one.served or one.gates):
                spelling = _SPELLINGS[one.provider_type]
                queues[spelling] = one.queue_name
                breakers += [_breaker(spelling, gate) for gate in one.gates]
                if not any(not gate.key for gate in one.gates):
                    breakers.append(BreakerView(spelling, "", _policy(one.breaker)))
        return sorted(breakers, key=lambda view: view.name), queues

    async def reset(self, breaker: BreakerView) -> tuple[CircuitState, CircuitState]:
        """Close a breaker.

        Returns:
            Its state before and now.

        Raises:
            MeshError: The service does not answer.
        """
        request = tasks_service_pb2.ResetProviderBreakerRequest(
            provider_type=enums_pb2.ProviderType.Value(f"PROVIDER_TYPE_{breaker.provider}"), key=breaker.key
        )
        try:
            answer = await self._tasks.ResetProviderBreaker(request, timeout=5.0)
        except MeshError as error:
            if error.kind is ErrorKind.NOT_FOUND:  # nothing was ever called through it
                return CircuitState.CLOSED, CircuitState.CLOSED
            raise
        return _STATES[answer.previous_state], _STATES[answer.new_state]


def _told(worker: monitoring_service_pb2.WorkerTelling) -> WorkerTold:
    return WorkerTold(
        (worker.name, worker.started_at.ToDatetime(UTC)),
        dict(worker.completed),
        [ModelView(one.name, one.bytes, one.device) for one in worker.models],
        [_gpu(one) for one in worker.gpus],
    )


def _gpu(gpu: worker_service_pb2.GpuReading) -> GpuView:
    return GpuView(
        gpu.uuid,
        gpu.name,
        gpu.utilization if gpu.HasField("utilization") else None,
        gpu.used_bytes if gpu.HasField("used_bytes") else None,
        gpu.total_bytes if gpu.HasField("total_bytes") else None,
        gpu.temperature if gpu.HasField("temperature") else None,
        gpu.power_watts if gpu.HasField("power_watts") else None,
    )


def _breaker(provider: str, gate: tasks_service_pb2.ProviderGate) -> BreakerView:
    return BreakerView(
        provider,
        gate.key,
        _policy(gate.breaker),
        _STATES.get(gate.state, CircuitState.CLOSED),
        gate.failure_count,
        gate.success_count,
        gate.total_calls,
        gate.rejected_calls,
        _moment(gate, "last_failure_at"),
        _moment(gate, "opened_at"),
    )


def _policy(settings: tasks_service_pb2.BreakerSettings) -> BreakerPolicyView:
    return BreakerPolicyView(
        settings.failure_threshold,
        settings.recovery_timeout,
        settings.half_open_max_calls,
        settings.success_threshold,
    )


def _moment(gate: tasks_service_pb2.ProviderGate, field: str) -> datetime | None:
    moments = {"last_failure_at": gate.last_failure_at, "opened_at": gate.opened_at}
    return moments[field].ToDatetime(UTC) if gate.HasField(field) else None  # type: ignore[arg-type]  # one of two names


def named(breakers: Sequence[BreakerView], name: str) -> BreakerView | None:
    """Return the breaker of a name, if there is one."""
    return next((one for one in breakers if one.name == name), None)
