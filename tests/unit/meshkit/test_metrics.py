import urllib.request

import pytest

from meshkit import metrics, tracing


def test_declaring_twice_gives_the_same_metric() -> None:
    assert metrics.counter("twice", "x") is metrics.counter("twice", "y")


def test_declaring_as_another_kind_is_refused() -> None:
    metrics.gauge("kind_clash", "x")
    with pytest.raises(TypeError, match="Gauge"):
        metrics.counter("kind_clash", "x")


def test_no_port_serves_nothing() -> None:
    assert metrics.serve_metrics(None) is None


def test_the_page_shows_a_metric_and_closes() -> None:
    metrics.counter("page_shown", "x").inc(3)
    page = metrics.serve_metrics(0)
    assert page is not None
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{page.port}/metrics", timeout=60) as response:
            assert b"atelier_page_shown_total 3.0" in response.read()
    finally:
        page.close()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{page.port}/metrics", timeout=60)


def test_labels_that_nobody_bounds_are_bounded() -> None:
    tenants = metrics.BoundedLabel(2)
    assert [tenants.value(name) for name in ("a", "b", "c", "a", "d")] == [
        "a",
        "b",
        metrics.OTHERS,
        "a",
        metrics.OTHERS,
    ]


def test_only_a_trace_that_is_recorded_becomes_an_exemplar() -> None:
    assert metrics.exemplar(tracing.begin(f"00-{'a' * 32}-{'b' * 16}-01")) == {"trace_id": "a" * 32}
    assert metrics.exemplar(tracing.begin(f"00-{'a' * 32}-{'b' * 16}-00")) is None
    assert metrics.exemplar(None) is None
    assert metrics.stored_exemplar(f"00-{'a' * 32}-{'b' * 16}-01") == {"trace_id": "a" * 32}
    assert metrics.stored_exemplar(f"00-{'a' * 32}-{'b' * 16}-00") is None
    assert metrics.stored_exemplar("") is None
