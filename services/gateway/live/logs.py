"""The log of one job, as lines: what happened before, and what its messages say of what happens now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from meshkit.live.log import LiveMessage


@dataclass(frozen=True, slots=True)
class JobLog:
    """The log of one job.

    Attributes:
        job: The job.
        lines: What happened before, rendered.
    """

    job: str
    lines: Sequence[str]


_SAID: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "job.created": lambda _: "accepted",
    "job.started": lambda _: "began",
    "job.progress": lambda data: f"{data['progress']:g} percent" + (f", {data['message']}" if data["message"] else ""),
    "job.requeued": lambda data: "queued again" + (f": {data['error']}" if data["error"] else ""),
    "job.completed": lambda _: "completed",
    "job.failed": lambda data: str(data["error"]),
}
_ERRORS = frozenset({"job.failed", "job.requeued"})


def line(message: LiveMessage) -> str:
    """Return a message about a job as a line of its log."""
    told = orjson.loads(message.text)
    level = "ERROR" if message.type in _ERRORS else "INFO"
    return text(told["timestamp"], level, _SAID[message.type](told["data"]))


def text(timestamp: str, level: str, message: str) -> str:
    """Return a line of a log as it is sent."""
    data = {"timestamp": timestamp, "level": level, "message": message}
    return orjson.dumps({"type": "log", "data": data}).decode()
