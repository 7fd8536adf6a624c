"""How long requests to providers take, as the worker's metrics tell it."""

from __future__ import annotations

from atelier.tasks.v1.service_requests_pb2 import ServiceRequest

from meshkit import metrics, spans, tracing
from meshkit.catalog import provider_numbered
from meshkit.spans import Span, SpanKind

_SECONDS = metrics.histogram(
    "provider_request_seconds",
    "From sending a request to a provider to its end, by how it ended",
    ("provider", "outcome"),
    (0.1, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 900),
)


def measure(request: ServiceRequest, outcome: str) -> None:
    """Count a request that has ended."""
    sent, ended = (moment.seconds * 1_000_000_000 + moment.nanos for moment in (request.sent_at, request.ended_at))
    provider, trace = provider_numbered(request.provider_type).name, tracing.current()
    _SECONDS.labels(provider, outcome).observe(max(0, ended - sent) / 1e9, metrics.exemplar(trace))
    if trace is not None and spans.recording(trace):
        own = tracing.within(trace)
        failure = "" if outcome == "done" else outcome
        facts = {"atelier.provider": provider}
        ids = own.trace_id, own.span_id, own.parent_id
        spans.record_whole(Span(f"provider {provider}", SpanKind.CLIENT, *ids, sent, ended, facts, "", failure))
