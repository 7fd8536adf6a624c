"""Brings the schemas of all services up to date: `python -m meshkit.migrations [ROLE ...]`.

Services that a mesh need not have are migrated where their roles are named, as `capture`.

Each service does the same for its own schema when it starts. To do it for all of them before the first replica of a new
version starts tells early whether it works, while the old version goes on.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Collection
from contextlib import AsyncExitStack

from meshkit import db, lifecycle, topology
from meshkit.config import MeshSettings
from meshkit.logging import get_logger

_log = get_logger(__name__)


async def migrate_all(dsn: str, optional: Collection[str] = ()) -> None:
    """Bring the schemas of all services up to date.

    Args:
        dsn: `postgresql://` address.
        optional: Roles of services that this mesh has beside those of every mesh.

    Raises:
        MeshError: A schema could not be migrated; those before it were.
        ValueError: No such service may be had beside the others; nothing was migrated.
    """
    if unknown := sorted(set(optional) - {spec.role for spec in topology.OPTIONAL}):
        raise ValueError(f"{unknown[0]} is no optional service")
    for spec in (*topology.SERVICES, *topology.OPTIONAL):
        if spec.schema and (spec in topology.SERVICES or spec.role in optional):
            await db.migrate(dsn, spec.schema, spec.migrations)
            _log.info("migrated", schema=spec.schema)


async def _main(_stack: AsyncExitStack, _stop: asyncio.Event) -> None:
    await migrate_all(MeshSettings().database_url.get_secret_value(), _arguments())


def _arguments() -> list[str]:
    parser = argparse.ArgumentParser(prog="python -m meshkit.migrations", description=__doc__)
    parser.add_argument("roles", nargs="*", metavar="ROLE", help="a service that a mesh need not have")
    roles: list[str] = parser.parse_args().roles
    return roles


if __name__ == "__main__":
    _arguments()  # before logs and signals are set up: what is wrong is told in plain words
    lifecycle.run(_main, service="migrations")
