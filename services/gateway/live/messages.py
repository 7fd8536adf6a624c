"""What clients say over a WebSocket, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from meshkit.live.registry import CHANNELS

_MOST_PATTERNS = 100
_MOST_PATTERN_CHARS = 128
_MOST_SEQUENCE = 1 << 63


class BadMessageError(Exception):
    """A message that is not understood.

    Attributes:
        error: What is wrong, as a word for programs.
        details: Anything more to say.
    """

    def __init__(self, error: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.error = error
        self.details = details


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a pong."""


@dataclass(frozen=True, slots=True)
class Pong:
    """Answers a ping."""


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Asks for types of events, or for an end of them.

    Attributes:
        patterns: `*`, `x.*` or a type.
        ends: Whether they are to end.
    """

    patterns: Sequence[str]
    ends: bool


@dataclass(frozen=True, slots=True)
class Resync:
    """Asks for what was missed.

    Attributes:
        channel: Of which channel.
        last_sequence: Number of the last message that came.
    """

    channel: str
    last_sequence: int


def read(text: str | None) -> Ping | Pong | Subscribe | Resync:
    """Return what a client says.

    Args:
        text: The message; None for one that is no text.

    Raises:
        BadMessageError: It is not understood.
    """
    if text is None:
        raise BadMessageError("invalid_message_format", "Messages are JSON texts, not bytes")
    try:
        said = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise BadMessageError("invalid_json", "The message is no JSON") from None
    if not isinstance(said, dict) or not isinstance(said.get("type"), str):
        raise BadMessageError("invalid_message_format", "A message is an object with a `type`")
    type_, data = said["type"], said.get("data")
    if type_ == "ping":
        return Ping()
    if type_ == "pong":
        return Pong()
    if type_ in {"subscribe", "unsubscribe"}:
        return Subscribe(_patterns(data), ends=type_ == "unsubscribe")
    if type_ == "resync":
        return _resync(data)
    known = ["ping", "pong", "resync", "subscribe", "unsubscribe"]
    raise BadMessageError("unknown_message_type", f"No message is called {type_[:64]!r}", {"known": known})


def patterns_of(values: Sequence[object]) -> list[str]:
    """Return patterns that are well formed.

    Raises:
        BadMessageError: One is not.
    """
    if len(values) > _MOST_PATTERNS:
        raise _invalid("data.events", f"should have at most {_MOST_PATTERNS} patterns")
    for one in values:
        if not isinstance(one, str) or not one or len(one) > _MOST_PATTERN_CHARS:
            raise _invalid("data.events", "should have patterns: `*`, `x.*` or a type")
        if "*" in one and one != "*" and (one.count("*") > 1 or not one.endswith(".*") or one == ".*"):
            raise _invalid("data.events", "has a pattern that is neither `*`, `x.*` nor a type")
    return [str(one) for one in values]


def _patterns(data: object) -> list[str]:
    events = data.get("events") if isinstance(data, dict) else None
    if not isinstance(events, list):
        raise _invalid("data.events", "should be a list of patterns")
    return patterns_of(events)


def _resync(data: object) -> Resync:
    if not isinstance(data, dict) or data.get("channel") not in CHANNELS:
        raise _invalid("data.channel", f"should be one of {', '.join(CHANNELS)}")
    last = data.get("last_sequence")
    if not isinstance(last, int) or isinstance(last, bool) or not 0 <= last < _MOST_SEQUENCE:
        raise _invalid("data.last_sequence", "should be a number of a message, or 0")
    return Resync(data["channel"], last)


def _invalid(place: str, message: str) -> BadMessageError:
    return BadMessageError("validation_error", f"`{place}` {message}", {"field": place})


class WantedTypes:
    """Which types a client wants: all, until it says."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self._patterns = set(patterns or ("*",))
        self._left_out: set[str] = set()
        self._asked = bool(patterns)

    def change(self, said: Subscribe) -> None:
        """Want more, or less; the first subscription takes the place of all."""
        if said.ends:
            self._patterns -= set(said.patterns)
            self._left_out |= set(said.patterns)
            return
        if not self._asked:
            self._patterns, self._asked = set(), True
        self._patterns |= set(said.patterns)
        self._left_out = set() if "*" in said.patterns else self._left_out - set(said.patterns)

    def has(self, type_: str) -> bool:
        """Tell whether a type is wanted: by its own name before that of its kind, by that before `*`."""
        for one in (type_, f"{type_.partition('.')[0]}.*", "*"):
            if one in self._patterns or one in self._left_out:
                return one in self._patterns
        return False
