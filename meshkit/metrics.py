"""Prometheus metrics: one registry per process, and a page that serves it.

Declare a metric where it is used. To declare it again returns the same one, so that tests may build an object twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, start_http_server
from prometheus_client.metrics import MetricWrapperBase

from meshkit.tracing import Trace, parse

# Seconds: from a lookup in memory to a call that waits for a long poll.
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

# Seconds: from a queue that is served at once to work that waits for a machine.
WAIT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)

OTHERS = "(others)"
"""What stands for a label's values beyond those that have a series of their own."""

_lock = threading.Lock()
_declared: dict[str, MetricWrapperBase] = {}
_Metric = TypeVar("_Metric", bound=MetricWrapperBase)


def counter(name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
    """Return a figure that only grows.

    Args:
        name: Name with the unit, without `_total`; the prefix `atelier_` is added.
        documentation: What is counted.
        labels: Names of its labels, whose values must be few.
    """
    return _declare(name, Counter, lambda full: Counter(full, documentation, labels))


def gauge(name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
    """Return a figure that rises and falls; arguments as for `counter`."""
    return _declare(name, Gauge, lambda full: Gauge(full, documentation, labels))


def histogram(
    name: str, documentation: str, labels: Sequence[str] = (), buckets: Sequence[float] = LATENCY_BUCKETS
) -> Histogram:
    """Return a distribution; arguments as for `counter`, with the upper bounds of its buckets."""
    return _declare(name, Histogram, lambda full: Histogram(full, documentation, labels, buckets=buckets))


def exemplar(trace: Trace | None) -> dict[str, str] | None:
    """Return what an observation bears to lead to its trace; None where the trace is not recorded.

    Args:
        trace: Trace of the work that is observed.
    """
    return {"trace_id": trace.trace_id} if trace is not None and trace.sampled else None


def stored_exemplar(traceparent: str) -> dict[str, str] | None:
    """Return the same for work whose trace is stored, without reading that where it is not recorded, as most are not.

    Args:
        traceparent: What `Trace.traceparent` gave; empty for none.
    """
    return exemplar(parse(traceparent)) if traceparent.endswith("1") else None


class BoundedLabel:
    """Values of a label that nobody bounds, such as tenants: the first ones keep their names, all others share one.

    A process forgets them only when it ends, as Prometheus' clients forget no series.

    Args:
        limit: Values that keep their names.
    """

    def __init__(self, limit: int = 100) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def value(self, value: str) -> str:
        """Return the value, or `OTHERS`."""
        if value in self._known:
            return value
        if len(self._known) >= self._limit:
            return OTHERS
        self._known.add(value)
        return value


class MetricsServer:
    """The Prometheus page on a thread of its own, so that a busy event loop still answers."""

    def __init__(self, port: int, host: str) -> None:
        self._server, self._thread = start_http_server(port, addr=host, registry=REGISTRY)

    @property
    def port(self) -> int:
        """The port in use."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


def serve_metrics(port: int | None, host: str = "127.0.0.1") -> MetricsServer | None:
    """Serve `/metrics`.

    Args:
        port: Port to serve on, 0 for one that the system chooses; None serves nothing.
        host: Address to serve on.

    Returns:
        The running page, or None.
    """
    return None if port is None else MetricsServer(port, host)


def _declare(name: str, kind: type[_Metric], make: Callable[[str], _Metric]) -> _Metric:
    full = name if name.startswith("atelier_") else f"atelier_{name}"
    with _lock:
        known = _declared.get(full)
        if known is None:
            known = _declared[full] = make(full)
        if not isinstance(known, kind):
            raise TypeError(f"{full} is declared as {type(known).__name__}")
        return known
