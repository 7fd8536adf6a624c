"""Sends spans to a collector by OTLP over gRPC, from a thread of its own, so that no request waits for it.

What does not fit into the queue, or is not taken after the exporter's own retries, is dropped and counted: a collector
that is away costs traces and nothing else. What speaks OTLP (`meshkit.otlp`) is imported only where an address is set.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from meshkit import metrics, spans, tracing
from meshkit.logging import get_logger
from meshkit.spans import Span

if TYPE_CHECKING:
    from contextlib import AsyncExitStack, ExitStack

    from meshkit.config import MeshSettings

_log = get_logger(__name__)

_EXPORTED = metrics.counter("trace_spans_exported", "Spans that the collector has taken.")
_DROPPED = metrics.counter("trace_spans_dropped", "Spans that were not exported, by cause.", ("cause",))
_WAITING = metrics.gauge("trace_spans_waiting", "Spans that wait to be exported.")

QUEUE = 8192
BATCH = 512
INTERVAL_SECONDS = 1.0
CLOSE_SECONDS = 2.0

Send = Callable[[Sequence[Span]], bool]
"""Sends a batch; returns whether it was taken."""


class SpanExporter:
    """A queue of spans, and the thread that sends them.

    Args:
        send: Sends a batch.
        shutdown: Ends a send that is under way, and its connection.
        queue: Spans that may wait.
        interval_seconds: Longest wait of a span before it is sent.
    """

    def __init__(
        self,
        send: Send,
        shutdown: Callable[[], None] = lambda: None,
        *,
        queue: int = QUEUE,
        interval_seconds: float = INTERVAL_SECONDS,
    ) -> None:
        self._send = send
        self._shutdown = shutdown
        self._most = queue
        self._interval = interval_seconds
        self._queue: deque[Span] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        _WAITING.set_function(lambda: len(self._queue))
        self._thread.start()

    def take(self, span: Span) -> None:
        """Queue a span; never waits."""
        if len(self._queue) >= self._most:
            _DROPPED.labels("queue_full").inc()
            return
        self._queue.append(span)
        if len(self._queue) >= BATCH and not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Send what waits, for a few seconds at most."""
        self._closing = True
        self._wake.set()
        self._thread.join(CLOSE_SECONDS)
        self._shutdown()
        self._thread.join(CLOSE_SECONDS)
        if self._queue:
            _DROPPED.labels("stopped").inc(len(self._queue))
            self._queue.clear()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(self._interval)
            self._wake.clear()
            self._flush()
        self._flush()

    def _flush(self) -> None:
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            try:
                taken = self._send(batch)
            except Exception as error:  # whatever the exporter raises ends no thread
                _log.debug("spans_not_sent", exc_info=error)
                taken = False
            if taken:
                _EXPORTED.inc(len(batch))
            else:
                _DROPPED.labels("export").inc(len(batch))
            if taken is self._failing:  # told once, not with every batch
                self._failing = not taken
                if taken:
                    _log.info("spans_exported_again")
                else:
                    _log.warning("spans_not_exported", count=len(batch))


def export_spans(settings: MeshSettings, service: str, stack: ExitStack | AsyncExitStack) -> None:
    """Sample traces, and record and export their spans where the settings name a collector.

    Args:
        settings: Where the collector is, and which part of the traces is recorded.
        service: Name of the service.
        stack: Ends it.
    """
    # Without a collector too: a trace that is sampled is an exemplar in the histograms, which costs each as much again.
    tracing.sample(settings.trace_ratio)
    stack.callback(tracing.sample, 1.0)
    if not settings.otlp_endpoint:
        return
    from meshkit.otlp import OtlpSender  # noqa: PLC0415 -- half a second that a mesh without a collector does not need

    sender = OtlpSender(settings.otlp_endpoint, service)
    exporter = SpanExporter(sender.send, sender.close)
    stack.callback(exporter.close)
    spans.record_with(exporter.take)
    stack.callback(spans.record_with, None)
    _log.info("spans_exported_to", endpoint=settings.otlp_endpoint, ratio=settings.trace_ratio)
