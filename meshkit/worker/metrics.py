"""What a worker counts and measures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from atelier.inference.v1.child_pb2 import ChildLoan
from atelier.tasks.v1.enums_pb2 import ProviderType
from prometheus_client import Histogram

from meshkit import metrics, tracing
from meshkit.spelling import value_names
from meshkit.worker.pairs import Pair

ATTEMPTS = metrics.counter("worker_attempts", "Attempts that ended.", ("task_type", "outcome"))
DEVICE_SECONDS = metrics.counter("worker_device_seconds", "Seconds the device worked.", ("task_type",))
CHILD_LOSSES = metrics.counter("worker_child_losses", "Children that were lost, by cause.", ("cause",))
SLOTS = metrics.gauge("worker_slots", "Slots of the worker.")
SLOTS_BUSY = metrics.gauge("worker_slots_busy", "Slots in use.")
HELD = metrics.gauge("worker_attempts_held", "Attempts that are leased and have not ended.")
FETCHING = metrics.gauge("worker_fetching", "Attempts that wait for inputs from addresses.")
SESSION = metrics.gauge("worker_session_open", "Sessions that are open, one for each pool of work.")
SLOT_WAIT_SECONDS = metrics.histogram(
    "worker_slot_wait_seconds", "Wait of a ready attempt for its slot.", ("task_type",)
)
ATTEMPT_SECONDS = metrics.histogram(
    "worker_attempt_seconds",
    "From the start of a handler to its result, by the first model that it was lent.",
    ("task_type", "provider", "model"),
    (0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200),
)
BATCH_MEMBERS = metrics.histogram(
    "worker_batch_members", "Attempts that ran together on the device.", ("task_type",), (1, 2, 4, 8, 16, 32)
)
MODEL_LOANS = metrics.counter(
    "worker_model_loans", "Models that attempts were lent, by whether they were in memory.", ("model", "resident")
)
TENANT_DEVICE_SECONDS = metrics.counter(
    "worker_tenant_device_seconds", "Seconds the device worked, by tenant; the first 100 have names.", ("tenant",)
)
MODEL_BYTES = metrics.gauge("worker_model_bytes", "Memory of resident models.")

# Each combination of labels is looked up once: the look-up costs more than the counting.
attempts = cache(ATTEMPTS.labels)
device_seconds = cache(DEVICE_SECONDS.labels)
slot_wait_seconds = cache(SLOT_WAIT_SECONDS.labels)
batch_members = cache(BATCH_MEMBERS.labels)
_model_loans = cache(MODEL_LOANS.labels)
_tenant_device_seconds = cache(TENANT_DEVICE_SECONDS.labels)
_tenants = metrics.BoundedLabel()


@cache
def _attempt_seconds(pair: Pair, model: str) -> Histogram:
    provider = value_names(ProviderType.DESCRIPTOR)[pair.provider]
    return ATTEMPT_SECONDS.labels(pair.label, provider, model)


def count_device_seconds(pair: Pair, tenant: str, seconds: float) -> None:
    """Count what the device has worked for an attempt."""
    device_seconds(pair.label).inc(seconds)
    _tenant_device_seconds(_tenants.value(tenant)).inc(seconds)


def count_result(pair: Pair, seconds: float, loans: Sequence[ChildLoan]) -> None:
    """Observe an attempt whose handler gave a result.

    Args:
        pair: What it was.
        seconds: From the start of its handler.
        loans: The models that it was lent.
    """
    series = _attempt_seconds(pair, loans[0].model if loans else "")
    series.observe(seconds, metrics.exemplar(tracing.current()))


def count_loans(loans: Sequence[ChildLoan]) -> None:
    """Count the models that an attempt was lent."""
    for loan in loans:
        _model_loans(loan.model, "true" if loan.resident else "false").inc()
