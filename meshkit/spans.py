"""Spans: what a piece of work was, when it began and ended, and what it is a part of.

Who has done the work records it at its end, under the trace that began with it (`meshkit.tracing`). Spans are made by
hand, at the few places that explain where time goes; instrumentation that wraps every call would cost more than the
calls. Nothing is recorded before `record_with` was told where to send it.

A task that waits in a queue holds no span open. Its trace is stored with it; the attempt that begins hours later, and
the webhook that tells of its end, bear a link to the span that created it, as OpenTelemetry's conventions for
messaging say, and are in the same trace, so that one identifier still finds all of it.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from meshkit.tracing import Trace

Attributes = Mapping[str, str | int | float | bool]


class SpanKind(enum.IntEnum):
    """Which side of a call a span is; numbers of OTLP."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


class Span(NamedTuple):
    """A piece of work that has ended; a tuple, because busy services make thousands a second.

    Attributes:
        name: What was done; few different ones.
        kind: Which side of a call it is.
        trace_id: Trace that it belongs to.
        span_id: Its identity.
        parent_id: Span that it is a part of; empty where there is none.
        began_ns: Nanoseconds since 1970.
        ended_ns: Nanoseconds since 1970.
        attributes: Facts of it. Neither secrets nor what callers wrote.
        link_id: Span of the same trace whose work it takes up after a wait; empty where there is none.
        failure: Why it failed, in one word; empty where it did not.
    """

    name: str
    kind: SpanKind
    trace_id: str
    span_id: str
    parent_id: str
    began_ns: int
    ended_ns: int
    attributes: Attributes
    link_id: str
    failure: str


class _SpanSink:
    """Where spans go; nowhere until the process is told."""

    take: Callable[[Span], None] | None = None


_sink = _SpanSink()


def record_with(take: Callable[[Span], None] | None) -> None:
    """Pass spans on from now on.

    Args:
        take: Called with each span, in whatever thread made it; returns at once. None records nothing.
    """
    _sink.take = take


def recording(trace: Trace | None) -> bool:
    """Tell whether spans of a trace are recorded; ask before attributes are put together."""
    return _sink.take is not None and trace is not None and trace.sampled


def record(
    trace: Trace | None,
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    *,
    seconds: float,
    attributes: Attributes = {},  # noqa: B006 -- a mapping that is only read
    linked: bool = False,
    failure: str = "",
) -> None:
    """Record work that ends now.

    Args:
        trace: Its own place in a trace; nothing is recorded without one.
        name: What was done.
        kind: Which side of a call it is.
        seconds: How long it took.
        attributes: Facts of it.
        linked: Whether it took up, after a wait, what its parent left.
        failure: Why it failed, in one word.
    """
    take = _sink.take
    if take is None or trace is None or not trace.sampled:
        return
    ended = time.time_ns()
    link = trace.parent_id if linked else ""
    began = ended - round(seconds * 1e9)
    take(Span(name, kind, trace.trace_id, trace.span_id, trace.parent_id, began, ended, attributes, link, failure))


def record_whole(span: Span) -> None:
    """Record a piece of work that ended earlier, and that `recording` was asked about."""
    if (take := _sink.take) is not None:
        take(span)
