"""Spans on their way to a collector, by OpenTelemetry's own exporter.

It repeats a batch that the collector does not take at once, compresses, and reads credentials from the standard
variables (`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_EXPORTER_OTLP_CERTIFICATE`). Import this module only where spans are
exported: it loads OpenTelemetry's SDK.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from meshkit.spans import Span

_SCOPE = InstrumentationScope("meshkit.spans")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSET = Status(StatusCode.UNSET)
_TIMEOUT_SECONDS = 10.0


class OtlpSender:
    """Sends spans of one service.

    Args:
        endpoint: The collector: `http://host:4317`, or `https://` for TLS.
        service: Name of the service.
    """

    def __init__(self, endpoint: str, service: str) -> None:
        # It writes a line for each try; the queue tells of a collector that is away, once.
        logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter").setLevel(logging.CRITICAL)
        self._exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_SECONDS)
        self._resource = Resource(
            {
                "service.name": service,
                "service.namespace": "atelier",
                "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
            }
        )

    def send(self, batch: Sequence[Span]) -> bool:
        """Send spans; returns whether they were taken."""
        return self._exporter.export([self._readable(span) for span in batch]) is SpanExportResult.SUCCESS

    def close(self) -> None:
        """End a send that is under way, and the connection."""
        self._exporter.shutdown()

    def _readable(self, span: Span) -> ReadableSpan:
        trace_id = int(span.trace_id, 16)
        links = [Link(_context(trace_id, span.link_id))] if span.link_id else []
        return ReadableSpan(
            span.name,
            context=_context(trace_id, span.span_id),
            parent=_context(trace_id, span.parent_id) if span.parent_id else None,
            resource=self._resource,
            attributes={**span.attributes, **({"error.type": span.failure} if span.failure else {})},
            links=links,
            kind=SpanKind(span.kind - 1),  # the SDK counts from 0
            status=Status(StatusCode.ERROR) if span.failure else _UNSET,
            start_time=span.began_ns,
            end_time=span.ended_ns,
            instrumentation_scope=_SCOPE,
        )


def _context(trace_id: int, span_id: str) -> SpanContext:
    return SpanContext(trace_id, int(span_id, 16), is_remote=False, trace_flags=_SAMPLED)
