"""Identifiers of tasks. Pure."""

from __future__ import annotations

import os
from datetime import datetime
from uuid import UUID


def time_ordered_id(now: datetime) -> UUID:
    """Return a version 7 UUID (RFC 9562, 5.7): rows created together lie together in the primary key's index."""
    milliseconds = int(now.timestamp() * 1000)
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | (0x7 << 76)
    value = value & ~(0x3 << 62) | (0x2 << 62)
    return UUID(int=value)
