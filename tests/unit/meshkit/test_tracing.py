from typing import Any

import pytest

from meshkit import tracing

TRACE, SPAN = "a" * 32, "b" * 16


def test_a_traceparent_is_read_and_written() -> None:
    trace = tracing.parse(f"00-{TRACE}-{SPAN}-01")
    assert trace is not None
    assert (trace.trace_id, trace.span_id, trace.sampled) == (TRACE, SPAN, True)
    assert trace.traceparent == f"00-{TRACE}-{SPAN}-01"


def test_a_later_version_with_more_fields_is_understood() -> None:
    assert tracing.parse(f"01-{TRACE}-{SPAN}-00-more") is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01\n00",
    ],
)
def test_a_malformed_traceparent_is_an_absent_one(text: Any) -> None:
    assert tracing.parse(text) is None


def test_begin_continues_the_callers_trace_in_a_span_of_its_own() -> None:
    trace = tracing.begin(f"00-{TRACE}-{SPAN}-01", "order-7")
    assert (trace.trace_id, trace.request_id) == (TRACE, "order-7")
    assert trace.span_id != SPAN


@pytest.mark.parametrize("request_id", ["a b", "x\ny", "x" * 129, "é", '"'])
def test_a_request_id_that_does_not_belong_into_a_log_is_replaced(request_id: Any) -> None:
    trace = tracing.begin("", request_id)
    assert trace.request_id == trace.trace_id


def test_the_current_trace_ends_with_its_block() -> None:
    with tracing.activated(tracing.new("r")):
        tracing.assign_tenant("acme")
        current = tracing.current()
        assert current is not None
        assert (current.request_id, current.tenant) == ("r", "acme")
    assert tracing.current() is None


def test_a_tenant_outside_of_any_trace_is_ignored() -> None:
    tracing.assign_tenant("acme")
    assert tracing.current() is None
