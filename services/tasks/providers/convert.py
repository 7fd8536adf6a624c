"""Between gates and messages of the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from atelier.tasks.v1 import tasks_service_pb2 as pb

from meshkit.catalog import PROVIDERS, TASK_TYPES
from meshkit.moments import assign
from services.tasks.catalog import Catalog
from services.tasks.providers.domain import BreakerPolicy, BreakerState, Gate, GateName, ProviderLimits
from services.tasks.providers.gates import GATED


def to_state(state: BreakerState) -> pb.BreakerState.ValueType:
    """Return a breaker's state for the wire."""
    return pb.BreakerState.Value(f"BREAKER_STATE_{state.name}")


def to_providers(
    catalog: Catalog, gates: Sequence[Gate], running: Mapping[GateName, int], limits: ProviderLimits
) -> pb.ListProvidersResponse:
    """Return all providers, with what stands before them."""
    response = pb.ListProvidersResponse()
    for name, spec in PROVIDERS.items():
        status = response.providers.add(
            provider_type=spec.number, served=name in catalog.served_providers, queue_name=spec.queue
        )
        for task_type, capabilities in spec.tasks.items():
            if not TASK_TYPES[task_type].internal:
                status.tasks.add(task_type=TASK_TYPES[task_type].number, capabilities=sorted(capabilities))
        if name in GATED:
            _write_breaker(status.breaker, limits.of(GateName(name)).breaker)
        for gate in gates:
            if gate.name.provider == name:
                _write(status.gates.add(), gate, running.get(gate.name, 0), limits)
    return response


def _write(message: pb.ProviderGate, gate: Gate, running: int, limits: ProviderLimits) -> None:
    message.key = gate.name.key
    message.state = to_state(gate.breaker.state)
    message.failure_count = gate.breaker.failure_count
    message.success_count = gate.breaker.success_count
    message.total_calls = gate.total_calls
    message.rejected_calls = gate.rejected_calls
    message.running = running
    for field, moment in (
        ("last_failure_at", gate.breaker.last_failure_at),
        ("opened_at", gate.breaker.opened_at),
        ("blocked_until", gate.bucket.blocked_until),
        ("waiting_since", gate.waiting_since),
    ):
        if moment is not None:
            assign(getattr(message, field), moment)
    own = limits.of(gate.name)
    _write_breaker(message.breaker, own.breaker)
    if own.concurrency is not None:
        message.concurrency = own.concurrency
    if own.bucket is not None:
        message.rate, message.burst = own.bucket.rate, own.bucket.burst


def _write_breaker(message: pb.BreakerSettings, policy: BreakerPolicy) -> None:
    message.failure_threshold = policy.failure_threshold
    message.recovery_timeout = policy.recovery_timeout
    message.half_open_max_calls = policy.half_open_max_calls
    message.success_threshold = policy.success_threshold
