"""Spans on their way from the work to a collector."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest
from prometheus_client import REGISTRY

from meshkit import spans, tracing
from meshkit.config import MeshSettings
from meshkit.span_export import SpanExporter, export_spans
from meshkit.spans import Span, SpanKind

_PARENT = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.fixture
def taken() -> Iterator[list[Span]]:
    found: list[Span] = []
    spans.record_with(found.append)
    yield found
    spans.record_with(None)


def _dropped(cause: str) -> float:
    return REGISTRY.get_sample_value("atelier_trace_spans_dropped_total", {"cause": cause}) or 0.0


def test_work_is_recorded_as_a_part_of_what_caused_it(taken: list[Span]) -> None:
    trace = tracing.begin(_PARENT)
    spans.record(trace, "work", SpanKind.SERVER, seconds=2.0, attributes={"a": 1}, failure="INTERNAL")
    [span] = taken
    assert (span.trace_id, span.parent_id, span.link_id) == ("a" * 32, "b" * 16, "")
    assert span.span_id == trace.span_id
    assert span.ended_ns - span.began_ns == 2_000_000_000
    assert (span.name, span.attributes, span.failure) == ("work", {"a": 1}, "INTERNAL")


def test_what_was_taken_up_after_a_wait_bears_a_link(taken: list[Span]) -> None:
    spans.record(tracing.begin(_PARENT), "work", seconds=0.1, linked=True)
    assert taken[0].link_id == taken[0].parent_id == "b" * 16


def test_a_part_of_the_current_work_has_a_place_of_its_own() -> None:
    trace = tracing.begin(_PARENT)
    part = tracing.within(trace)
    assert (part.trace_id, part.parent_id) == (trace.trace_id, trace.span_id)
    assert part.span_id not in {trace.span_id, trace.parent_id}


@pytest.mark.parametrize("trace", [None, tracing.begin(f"00-{'a' * 32}-{'b' * 16}-00")])
def test_a_trace_that_is_not_sampled_is_not_recorded(taken: list[Span], trace: tracing.Trace | None) -> None:
    assert not spans.recording(trace)
    spans.record(trace, "work", seconds=1.0)
    assert taken == []


def test_traces_are_sampled_without_a_collector_too() -> None:
    with ExitStack() as stack:
        export_spans(MeshSettings(trace_ratio=0.0), "tests", stack)
        assert not tracing.new().sampled
        assert not spans.recording(tracing.begin(_PARENT))
    assert tracing.new().sampled


def test_nothing_is_recorded_without_a_recorder() -> None:
    assert not spans.recording(tracing.begin(_PARENT))


def test_the_part_of_traces_that_begin_here_is_sampled_and_callers_decide_for_theirs() -> None:
    try:
        tracing.sample(0.25)
        sampled = sum(tracing.new().sampled for _ in range(4000))
        assert 800 < sampled < 1200
        tracing.sample(0.0)
        assert not tracing.new().sampled
        assert tracing.begin(_PARENT).sampled
        tracing.sample(1.0)
        assert tracing.new().sampled
        assert not tracing.begin(f"00-{'a' * 32}-{'b' * 16}-00").sampled
    finally:
        tracing.sample(1.0)


def _span(name: str = "work") -> Span:
    return Span(name, SpanKind.INTERNAL, "a" * 32, "b" * 16, "", 1, 2, {}, "", "")


def test_spans_that_wait_are_sent_when_the_process_ends() -> None:
    sent: list[Span] = []

    def send(batch: Sequence[Span]) -> bool:
        sent.extend(batch)
        return True

    exporter = SpanExporter(send, interval_seconds=60)
    for number in range(600):
        exporter.take(_span(str(number)))
    exporter.close()
    assert [span.name for span in sent] == [str(number) for number in range(600)]


def test_what_does_not_fit_or_is_not_taken_is_dropped_and_counted() -> None:
    full, refused = _dropped("queue_full"), _dropped("export")
    held, entered = threading.Event(), threading.Event()

    def send(batch: Sequence[Span]) -> bool:
        entered.set()
        held.wait(60)
        return False

    exporter = SpanExporter(send, queue=5, interval_seconds=0.001)
    exporter.take(_span())
    assert entered.wait(60)
    for _ in range(8):
        exporter.take(_span())
    held.set()
    exporter.close()
    assert _dropped("queue_full") - full == 3
    assert _dropped("export") - refused == 6


def test_a_collector_that_raises_ends_no_thread() -> None:
    tries = []

    def send(batch: Sequence[Span]) -> bool:
        tries.append(len(batch))
        raise ConnectionError

    before = _dropped("export")
    exporter = SpanExporter(send, interval_seconds=0.001)
    for _ in range(3):
        exporter.take(_span())
    exporter.close()
    assert sum(tries) == 3
    assert _dropped("export") - before == 3
