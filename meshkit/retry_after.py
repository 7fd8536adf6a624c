"""How long another side asks to be left alone: the header `Retry-After` (RFC 9110, 10.2.3)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

# A number too long for an integer is one that every reader bounds anyway.
_MAX_DIGITS = 9


def asked_pause(header: str, now: datetime) -> timedelta | None:
    """Read the header.

    Args:
        header: Its value: seconds or a date.
        now: The present, with a time zone.

    Returns:
        The pause, never negative; None where the value is empty or malformed.
    """
    text = header.strip()
    if text.isascii() and text.isdigit():
        return timedelta(seconds=int(text[:_MAX_DIGITS]))
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(timedelta(), moment - now)
