"""W3C trace context, and the identity of the call that is being served.

This module only propagates: an identifier that enters at the gateway appears in every service's log, event and task.
`meshkit.spans` records what was done under it.
"""

from __future__ import annotations

import contextvars
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16


class Trace(NamedTuple):
    """The place of a piece of work in a trace; a tuple, because every call makes several.

    Attributes:
        trace_id: 32 lower-case hexadecimal digits, shared by all work of one cause.
        span_id: 16 lower-case hexadecimal digits of this piece.
        sampled: Whether the cause asked to be recorded.
        request_id: What the caller calls the request; the trace's own id where it did not say.
        tenant: Tenant that the work is done for, empty before it is known.
        parent_id: Span of the work that caused this, in the same trace; empty where it is the first.
    """

    trace_id: str
    span_id: str
    sampled: bool = True
    request_id: str = ""
    tenant: str = ""
    parent_id: str = ""

    @property
    def traceparent(self) -> str:
        """The value of the `traceparent` header that continues here."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


_SAMPLED_OF = 1 << 56


class _Sampling:
    below = _SAMPLED_OF


_sampling = _Sampling()
_current: contextvars.ContextVar[Trace | None] = contextvars.ContextVar("atelier_trace", default=None)


def parse(traceparent: str) -> Trace | None:
    """Read a `traceparent` header; None where it is malformed, which callers treat as absent (W3C, 4.3)."""
    read = _read(traceparent)
    return None if read is None else Trace(*read, request_id=read[0])


def sample(ratio: float) -> None:
    """Record a part of the traces that begin here; those that a caller began are recorded where the caller says so.

    Args:
        ratio: From 0 for none to 1 for all, which is the default.
    """
    _sampling.below = round(ratio * _SAMPLED_OF)


def new(request_id: str = "") -> Trace:
    """Begin a trace."""
    trace_id = os.urandom(16).hex()
    # By the last digits of its random name, so that no other draw is needed (W3C, trace context level 2, 4.4).
    sampled = int(trace_id[-14:], 16) < _sampling.below
    return Trace(trace_id, trace_id[:16], sampled, request_id or trace_id)


def begin(traceparent: str = "", request_id: str = "") -> Trace:
    """Continue the caller's trace, or begin one.

    Args:
        traceparent: Header of that name, or empty.
        request_id: The caller's `x-request-id`; ignored where it has characters that do not belong into a log.
    """
    if request_id and not _REQUEST_ID.fullmatch(request_id):
        request_id = ""
    read = _read(traceparent) if traceparent else None
    if read is None:
        return new(request_id)
    trace_id, parent_id, sampled = read
    return Trace(trace_id, os.urandom(8).hex(), sampled, request_id or trace_id, parent_id=parent_id)


def within(trace: Trace) -> Trace:
    """Return a piece of a piece of work."""
    return trace._replace(span_id=os.urandom(8).hex(), parent_id=trace.span_id)


def current() -> Trace | None:
    """Return the trace of the current work, or None outside of any."""
    return _current.get()


def use(trace: Trace | None) -> contextvars.Token[Trace | None]:
    """Make a trace the current one in this task."""
    return _current.set(trace)


@contextmanager
def activated(trace: Trace) -> Iterator[Trace]:
    """Make a trace the current one within a `with`."""
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)


def _read(traceparent: str) -> tuple[str, str, bool] | None:
    """Return the trace, the span and whether it is sampled."""
    match = _TRACEPARENT.fullmatch(traceparent.strip())
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return trace_id, span_id, bool(int(flags, 16) & 1)


def assign_tenant(tenant: str) -> None:
    """Record the tenant of the current work, once it is known."""
    trace = _current.get()
    if trace is not None:
        _current.set(Trace(*trace[:4], tenant, trace.parent_id))
