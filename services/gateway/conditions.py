"""Conditional requests (RFC 9110, 13): what a caller says of an object's version, and whether that holds."""

from __future__ import annotations

import asyncio
import enum
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from weakref import WeakValueDictionary

from starlette.datastructures import Headers

from meshkit.objects import ObjectInfo

# An entity tag; one without quotes is taken as well, for callers that copy it so.
_TAG = re.compile(r'(W/)?("[^"]*"|[^",\s]+)')


class Verdict(enum.Enum):
    """What the conditions of a request come to."""

    HOLD = "hold"
    NOT_MODIFIED = "not_modified"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class _Tags:
    """The entity tags of a header.

    Attributes:
        any: Whether it is `*`: whatever version there is.
        strong: Tags for strong comparison, without quotes.
        weak: Tags for weak comparison, the strong ones included.
    """

    any: bool
    strong: frozenset[str]
    weak: frozenset[str]


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions of one request, each None where it has none.

    Attributes:
        match: `If-Match`.
        none_match: `If-None-Match`.
        modified_since: `If-Modified-Since`.
        unmodified_since: `If-Unmodified-Since`.
    """

    match: _Tags | None
    none_match: _Tags | None
    modified_since: datetime | None
    unmodified_since: datetime | None

    @classmethod
    def of(cls, headers: Headers) -> Conditions:
        """Read the conditions of a request; a date that is none counts for nothing."""
        return cls(
            match=_tags(headers, "if-match"),
            none_match=_tags(headers, "if-none-match"),
            modified_since=_date(headers, "if-modified-since"),
            unmodified_since=_date(headers, "if-unmodified-since"),
        )

    @property
    def bind_writes(self) -> bool:
        """Whether there is one that a write has to keep to."""
        return any(one is not None for one in (self.match, self.none_match, self.unmodified_since))

    def verdict(self, info: ObjectInfo | None, *, reads: bool) -> Verdict:
        """Tell whether the conditions hold, in the order of RFC 9110, 13.2.2.

        Args:
            info: The object; None where there is none.
            reads: Whether the request is a `GET` or a `HEAD`.
        """
        if self.match is not None:
            if info is None or not (self.match.any or info.etag in self.match.strong):
                return Verdict.FAILED
        elif self.unmodified_since is not None and info is not None and _second(info) > self.unmodified_since:
            return Verdict.FAILED
        if self.none_match is not None:
            if info is not None and (self.none_match.any or info.etag in self.none_match.weak):
                return Verdict.NOT_MODIFIED if reads else Verdict.FAILED
        elif reads and self.modified_since is not None and info is not None and _second(info) <= self.modified_since:
            return Verdict.NOT_MODIFIED
        return Verdict.HOLD


def _tags(headers: Headers, name: str) -> _Tags | None:
    lines = headers.getlist(name)
    if not lines:
        return None
    found = _TAG.findall(",".join(lines))
    return _Tags(
        any=("", "*") in found,
        strong=frozenset(tag.strip('"') for weak, tag in found if not weak),
        weak=frozenset(tag.strip('"') for _, tag in found),
    )


def _date(headers: Headers, name: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(headers[name])
    except (KeyError, ValueError, OverflowError):
        return None
    # HTTP's dates are all in GMT, whether the caller says so or not.
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _second(info: ObjectInfo) -> datetime:
    # What `Last-Modified` says: it has no fractions.
    return info.modified.astimezone(UTC).replace(microsecond=0)


class PathTurns:
    """Lets the writes to one object of this process take turns.

    The store compares versions itself; this holds even where it does not.
    """

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def of(self, tenant: str, path: str) -> asyncio.Lock:
        """Return the lock of an object, which lasts as long as somebody has it."""
        return self._locks.setdefault((tenant, path), asyncio.Lock())
