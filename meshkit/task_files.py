"""Tasks whose files a request names by their paths."""

from __future__ import annotations

import re
from functools import cache
from uuid import UUID

from meshkit.catalog import TASK_TYPES


@cache
def _path() -> re.Pattern[bytes]:
    folders = "|".join(sorted({re.escape(spec.prefix) for spec in TASK_TYPES.values()}))
    return re.compile(rf"(?:{folders})/([0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}})/".encode())


def named_tasks(message: bytes) -> set[UUID]:
    """Return the tasks whose files a serialized message names."""
    return {UUID(found.decode()) for found in _path().findall(message)}
