"""W3C trace context, and what identifies the call that is being served.

Only the propagation is here: an identifier that enters at the gateway is found in every service's log, event and task.
"""

from __future__ import annotations

import contextvars
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


@dataclass(frozen=True, slots=True)
class Trace:
    """The place of a piece of work in a trace.

    Attributes:
        trace_id: 32 lower-case hexadecimal digits, shared by all work of one cause.
        span_id: 16 lower-case hexadecimal digits of this piece.
        sampled: Whether the cause asked to be recorded.
        request_id: What the caller calls the request; the trace's own id where it did not say.
        tenant: Tenant that the work is done for, empty before it is known.
    """

    trace_id: str
    span_id: str
    sampled: bool = True
    request_id: str = ""
    tenant: str = ""

    @property
    def traceparent(self) -> str:
        """The value of the `traceparent` header that continues here."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


_current: contextvars.ContextVar[Trace | None] = contextvars.ContextVar("atelier_trace", default=None)


def parse(traceparent: str) -> Trace | None:
    """Reads a `traceparent` header; None where it is malformed, which callers treat as absent (W3C, 4.3)."""
    match = _TRACEPARENT.fullmatch(traceparent.strip())
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return Trace(trace_id, span_id, sampled=bool(int(flags, 16) & 1), request_id=trace_id)


def new(request_id: str = "") -> Trace:
    """Begins a trace."""
    trace_id = secrets.token_hex(16)
    return Trace(trace_id, trace_id[:16], request_id=request_id or trace_id)


def begin(traceparent: str = "", request_id: str = "") -> Trace:
    """Continues the caller's trace where it sent one, else begins one.

    Args:
        traceparent: Header of that name, or empty.
        request_id: The caller's `x-request-id`; ignored where it has characters that do not belong into a log.
    """
    if request_id and not _REQUEST_ID.fullmatch(request_id):
        request_id = ""
    parent = parse(traceparent) if traceparent else None
    if parent is None:
        return new(request_id)
    # Spelled out, as below: `replace` asks the class for its fields, at every call.
    return Trace(parent.trace_id, secrets.token_hex(8), parent.sampled, request_id or parent.trace_id)


def current() -> Trace | None:
    """The trace of the work at hand, or None outside of any."""
    return _current.get()


def use(trace: Trace | None) -> contextvars.Token[Trace | None]:
    """Makes a trace the current one in this task."""
    return _current.set(trace)


@contextmanager
def activated(trace: Trace) -> Iterator[Trace]:
    """Makes a trace the current one within a `with`."""
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)


def assign_tenant(tenant: str) -> None:
    """Notes for whom the work at hand is done, once that is known."""
    trace = _current.get()
    if trace is not None:
        _current.set(Trace(trace.trace_id, trace.span_id, trace.sampled, trace.request_id, tenant))
