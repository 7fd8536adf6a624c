"""Structured logs: one JSON object a line on standard error, with the current trace and without secrets."""

from __future__ import annotations

import asyncio
import atexit
import logging as stdlib
import re
import sys
import threading
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Protocol, cast

import orjson

from meshkit import metrics, tracing
from meshkit.structlog_alone import structlog

_DROPPED = metrics.counter("log_lines_dropped", "Log lines that could not be written")

REDACTED = "[redacted]"

_SECRET_KEY = re.compile(
    r"(?i)(^|[_\-.])(token|authorization|secret|password|passwd|pwd|api[_-]?key|private[_-]?key|secret[_-]?key|cookie"
    r"|credentials?|dsn|signature)s?$"
)
_SECRET_TEXT = re.compile(
    r"(?i)\b(?P<scheme>bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"
    r"|\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"
    r"|(?P<user>\b[a-z][a-z0-9+.-]*://[^\s/:@]*):[^\s/@]+@"
    r"|(?P<key>\b(?:password|passwd|secret|token|x-amz-signature|x-amz-credential)=)[^\s&'\"]+"
)
_MAX_DEPTH = 6
_FLAT = frozenset({str, int, float, bool, type(None)})


def redact(value: object, depth: int = 0) -> object:  # noqa: PLR0911 -- one return per kind of value
    """Return the value without secrets: known keys, bearer tokens, passwords in URLs."""
    if isinstance(value, str):
        return _SECRET_TEXT.sub(_cover, value) if _may_hold_a_secret(value) else value
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if depth >= _MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {
            str(key): REDACTED if _names_a_secret(str(key)) else redact(item, depth + 1) for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item, depth + 1) for item in value]
    return value


class LineSink(Protocol):
    """Where lines go: a file without a buffer, whose `write` may take a part of what it is given."""

    def write(self, data: bytes, /) -> int | None:
        """Write; the bytes taken, None where none could be."""
        ...


class LineWriter:
    """Writes lines; those of one turn of the event loop are written together.

    A warning, or a line of another thread, is written at once, after the lines that are held. A process that is killed
    loses the held lines, those of about a millisecond.

    A line that cannot be written, as on a full disk or to a reader that is gone or does not read, is dropped and
    counted: no work of the process fails by its log.

    Args:
        file: Where to.
    """

    def __init__(self, file: LineSink) -> None:
        self._file = file
        self._held: list[bytes] = []
        self._flushed_by: asyncio.AbstractEventLoop | None = None
        # Reentrant: a finalizer that the garbage collector runs meanwhile may log too.
        self._lock = threading.RLock()
        self._torn = False  # the last line that was written lacks its end

    def info(self, line: bytes) -> None:
        """Write a line at the loop's next turn."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.error(line)
            return
        with self._lock:
            self._held.append(line)
            asked, self._flushed_by = self._flushed_by, loop
        if asked is not loop:
            loop.call_soon(self.flush)

    def error(self, line: bytes) -> None:
        """Write a line now."""
        with self._lock:
            self._held.append(line)
        self.flush()

    def flush(self) -> None:
        """Write the held lines."""
        with self._lock:
            self._flushed_by = None
            held, self._held = self._held, []
            if not held:
                return
            lead = 1 if self._torn else 0
            data = b"\n" * lead + b"\n".join([*held, b""])
            written = self._write(data)
            if written < len(data):
                _DROPPED.inc(data.count(b"\n", max(written, lead)))
            if written:
                self._torn = data[written - 1 : written] != b"\n"

    def _write(self, data: bytes) -> int:
        """Write what can be written; how much that was."""
        written = 0
        try:
            while written < len(data):
                taken = self._file.write(data[written:] if written else data)
                if not taken:
                    break
                written += taken
        except (OSError, ValueError):  # ValueError: the file is closed
            pass
        return written

    debug = info
    warning = critical = error


class _StandardLines(stdlib.Handler):
    """Writes what libraries log through the standard library to the same lines.

    Args:
        lines: Where to.
    """

    def __init__(self, lines: LineWriter) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: stdlib.LogRecord) -> None:
        """Write a record."""
        try:
            line = self.format(record).encode(errors="backslashreplace")
        except Exception:  # of a record's own making: it is not to fail who logs
            _DROPPED.inc()
        else:
            self._lines.error(line)


def configure(service: str, level: str = "info") -> None:
    """Set up logging for the process, once at its start.

    Libraries that log through the standard library are written in the same form, from WARNING on.

    Args:
        service: Name of the service, a member of every line.
        level: Least level that is written: debug, info, warning or error.
    """
    threshold = stdlib.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.types.Processor] = [_stamp(service), structlog.processors.format_exc_info]
    # Without Python's buffer, which would keep what a full disk refused and refuse every line after it.
    lines = LineWriter(getattr(sys.stderr.buffer, "raw", sys.stderr.buffer))
    atexit.register(lines.flush)
    structlog.configure(
        processors=[_dropping(*shared, _render)],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_args: lines,
        cache_logger_on_first_use=True,
    )
    handler = _StandardLines(lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared, _redact_event],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_dump_text),
            ],
        )
    )
    root = stdlib.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(threshold, stdlib.WARNING))


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return a logger whose lines name their module.

    Args:
        name: The module's `__name__`.
    """
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger(module=name))


def _may_hold_a_secret(text: str) -> bool:
    """Whether a text contains what each alternative of `_SECRET_TEXT` needs; cheap, because most lines do not."""
    if text.isalnum():
        return False
    folded = text.casefold()
    return "=" in folded or "://" in folded or "eyj" in folded or "bearer" in folded or "basic" in folded


@lru_cache(maxsize=1024)
def _names_a_secret(key: str) -> bool:
    return _SECRET_KEY.search(key) is not None


@lru_cache(maxsize=1024)
def _name_a_secret(keys: tuple[str, ...]) -> bool:
    """Whether one of the keys does; lines of one place in the code have the same."""
    return any(map(_names_a_secret, keys))


def _cover(match: re.Match[str]) -> str:
    if match["scheme"]:
        return f"{match['scheme']} {REDACTED}"
    if match["user"]:
        return f"{match['user']}:{REDACTED}@"
    if match["key"]:
        return f"{match['key']}{REDACTED}"
    return REDACTED


def _stamp(service: str) -> structlog.types.Processor:
    """Return the processor that adds the members of every line; one, because each processor has a cost of its own."""

    def stamp(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        structlog.stdlib.add_log_level(logger, method, event)
        event["service"] = service
        trace = tracing.current()
        if trace is not None:
            event.setdefault("trace_id", trace.trace_id)
            event.setdefault("request_id", trace.request_id)
            if trace.tenant:
                event.setdefault("tenant", trace.tenant)
        event["timestamp"] = f"{datetime.now(UTC).isoformat()[: -len('+00:00')]}Z"
        return event

    return stamp


def _dropping(*processors: structlog.types.Processor) -> structlog.types.Processor:
    """Return the processors as one that drops an event which cannot be rendered, in place of failing who logs it."""

    def process(logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:
        try:
            for processor in processors:
                event = processor(logger, method, event)  # type: ignore[assignment] # the last one returns the line
        except Exception:
            _DROPPED.inc()
            raise structlog.DropEvent from None
        return event

    return process


def _render(_logger: object, _method: str, event: MutableMapping[str, Any]) -> bytes:
    try:
        line = _dump(event)
    except TypeError:  # of keys that are no strings, which `redact` spells
        return _dump(redact(event))
    return line if _needs_no_cover(event, line) else _dump(redact(event))


def _needs_no_cover(event: Mapping[str, Any], line: bytes) -> bool:
    """Whether `redact` would change nothing, as for nearly every line: flat, no key of a secret, no sign of a secret.

    Args:
        event: The line's members.
        line: The same as JSON, where a sign of a secret reads as in the text itself.
    """
    # Letters beyond ASCII have cases of their own, which `_may_hold_a_secret` would have to look at one by one.
    return (
        _FLAT.issuperset(map(type, event.values()))
        and line.isascii()
        and not _name_a_secret(tuple(event))
        and not _may_hold_a_secret(line.decode("ascii"))
    )


def _redact_event(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # ProcessorFormatter keeps its own objects under these names until it removes them.
    kept = {key: event.pop(key) for key in ("_record", "_from_structlog") if key in event}
    clean = cast("dict[str, Any]", redact(event))
    clean.update(kept)
    return clean


def _dump(event: object, **_options: object) -> bytes:
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS)


def _dump_text(event: object, **options: object) -> str:
    return _dump(event, **options).decode()


# A program that uses a part of the mesh without being a service (a command, a test) gets warnings and errors only, on
# standard error, and without the local variables that structlog shows by default.
if not structlog.is_configured():
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.format_exc_info,
            _redact_event,
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(stdlib.WARNING),
        logger_factory=lambda *_args: structlog.PrintLogger(sys.stderr),
    )
