"""Brings the schemas of all services up to date: `python -m meshkit.migrations`.

Each service does the same for its own schema when it starts. To do it for all of them before the first replica of a new
version starts tells early whether it works, while the old version goes on.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from meshkit import db, lifecycle, topology
from meshkit.config import MeshSettings
from meshkit.logging import get_logger

_log = get_logger(__name__)


async def migrate_all(dsn: str) -> None:
    """Bring the schemas of all services up to date.

    Args:
        dsn: `postgresql://` address.

    Raises:
        MeshError: A schema could not be migrated; those before it were.
    """
    for spec in topology.SERVICES:
        if spec.schema:
            await db.migrate(dsn, spec.schema, spec.migrations)
            _log.info("migrated", schema=spec.schema)


async def _main(_stack: AsyncExitStack, _stop: asyncio.Event) -> None:
    await migrate_all(MeshSettings().database_url.get_secret_value())


if __name__ == "__main__":
    lifecycle.run(_main, service="migrations")
