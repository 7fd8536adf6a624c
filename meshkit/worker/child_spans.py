"""Spans of a child process: it has no connection to a collector, so it tells its parent what it did when."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from atelier.inference.v1.child_pb2 import ChildSpan

from meshkit import spans, tracing
from meshkit.spans import Span, SpanKind
from meshkit.tracing import Trace


class Stopwatch:
    """Takes down what a child does for a job.

    Args:
        traceparent: Trace of the job.
    """

    def __init__(self, traceparent: str) -> None:
        trace = tracing.parse(traceparent)
        self._parent_id = "" if trace is None else trace.span_id
        self._span_id = os.urandom(8).hex()
        self._began = time.time_ns()
        self._parts: list[ChildSpan] = []

    def part(self, name: str, began_ns: int, ended_ns: int) -> None:
        """Note a part of the work."""
        self._parts.append(
            ChildSpan(
                name=name, span_id=os.urandom(8).hex(), parent_id=self._span_id, began_ns=began_ns, ended_ns=ended_ns
            )
        )

    def ended(self, name: str) -> list[ChildSpan]:
        """Return the work, which ends now, and its parts."""
        whole = ChildSpan(
            name=name,
            span_id=self._span_id,
            parent_id=self._parent_id,
            began_ns=self._began,
            ended_ns=time.time_ns(),
        )
        return [whole, *self._parts]


def record(trace: Trace | None, told: Iterable[ChildSpan]) -> None:
    """Record in the parent what a child has told.

    Args:
        trace: The trace that the child was given.
        told: What it told.
    """
    if trace is None or not spans.recording(trace):
        return
    for one in told:
        times = one.began_ns, one.ended_ns
        spans.record_whole(
            Span(one.name, SpanKind.INTERNAL, trace.trace_id, one.span_id, one.parent_id, *times, {}, "", "")
        )
