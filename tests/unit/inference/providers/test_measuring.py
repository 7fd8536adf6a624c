"""Requests to providers as metrics and spans."""

from collections.abc import Iterator

import pytest
from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_VERTEX
from atelier.tasks.v1.service_requests_pb2 import ServiceRequest
from prometheus_client import REGISTRY

from meshkit import spans, tracing
from meshkit.spans import Span, SpanKind
from services.inference.providers.measuring import measure


@pytest.fixture
def taken() -> Iterator[list[Span]]:
    found: list[Span] = []
    spans.record_with(found.append)
    yield found
    spans.record_with(None)


def _request() -> ServiceRequest:
    request = ServiceRequest(id="r", provider_type=PROVIDER_TYPE_VERTEX)
    request.sent_at.FromSeconds(100)
    request.ended_at.FromMilliseconds(103_500)
    return request


def test_a_request_is_a_part_of_the_attempt_that_made_it(taken: list[Span]) -> None:
    attempt = tracing.begin(f"00-{'a' * 32}-{'b' * 16}-01")
    with tracing.activated(attempt):
        measure(_request(), "done")
    [span] = taken
    assert (span.name, span.kind, span.trace_id) == ("provider VERTEX", SpanKind.CLIENT, "a" * 32)
    assert span.parent_id == attempt.span_id
    assert span.span_id not in {attempt.span_id, attempt.parent_id}
    assert (span.began_ns, span.ended_ns) == (100 * 10**9, 103_500 * 10**6)
    assert span.failure == ""


def test_a_request_that_failed_says_how(taken: list[Span]) -> None:
    labels = {"provider": "VERTEX", "outcome": "rate_limit"}
    before = REGISTRY.get_sample_value("atelier_provider_request_seconds_sum", labels) or 0.0
    with tracing.activated(tracing.begin(f"00-{'a' * 32}-{'b' * 16}-01")):
        measure(_request(), "rate_limit")
    assert [span.failure for span in taken] == ["rate_limit"]
    assert REGISTRY.get_sample_value("atelier_provider_request_seconds_sum", labels) == before + 3.5


def test_outside_of_a_recorded_trace_it_is_only_counted(taken: list[Span]) -> None:
    measure(_request(), "done")
    with tracing.activated(tracing.begin(f"00-{'a' * 32}-{'b' * 16}-00")):
        measure(_request(), "done")
    assert taken == []
