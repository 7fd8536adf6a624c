"""How long requests to providers take, as the worker's metrics tell it."""

from __future__ import annotations

from atelier.tasks.v1.service_requests_pb2 import ServiceRequest

from meshkit import metrics
from meshkit.catalog import provider_numbered

_SECONDS = metrics.histogram(
    "provider_request_seconds",
    "From sending a request to a provider to its end, by how it ended",
    ("provider", "outcome"),
    (0.1, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 900),
)


def measure(request: ServiceRequest, outcome: str) -> None:
    """Count a request that has ended."""
    sent, ended = (moment.seconds + moment.nanos / 1e9 for moment in (request.sent_at, request.ended_at))
    _SECONDS.labels(provider_numbered(request.provider_type).name, outcome).observe(max(0.0, ended - sent))
