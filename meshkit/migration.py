"""Migrations of a service's schema by Alembic.

`meshkit.db` starts this module as a process and never imports it: SQLAlchemy and Alembic are loaded only by processes
that migrate. A service's `migrations/env.py` calls `run_env`.
"""

from __future__ import annotations

import sys
import zlib
from typing import TYPE_CHECKING, cast

import psycopg
from alembic import command, context
from alembic.config import Config
from psycopg import sql
from sqlalchemy import create_engine, pool

from meshkit import revisions
from meshkit.db import connection_options

if TYPE_CHECKING:
    from sqlalchemy import Connection, MetaData

_LOCK_SPACE = 0x61746C  # "atl": keeps these advisory locks apart from others in the same database


def upgrade(dsn: str, schema: str, script_package: str, revision: str = "head") -> None:
    """Bring a schema to a revision, under a lock; blocks.

    Args:
        dsn: `postgresql://` address.
        schema: The schema.
        script_package: Package with `env.py` and `versions/`.
        revision: Revision to reach.
    """
    options = connection_options(schema, 0, f"atelier-migrate-{schema}")
    # A migration may wait long between its statements while Python works.
    options["options"] += " -c idle_in_transaction_session_timeout=0"
    config = Config()
    config.set_main_option("script_location", str(revisions.folder(script_package)).replace("%", "%%"))
    config.attributes["schema"] = schema
    with psycopg.connect(dsn, **{**options, "autocommit": True}) as guard:
        guard.execute("SELECT pg_advisory_lock(%s, %s)", (_LOCK_SPACE, zlib.crc32(schema.encode()) - 2**31))
        guard.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
        engine = create_engine(
            "postgresql+psycopg://", creator=lambda: psycopg.connect(dsn, **options), poolclass=pool.NullPool
        )
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
        engine.dispose()


def run_env(metadata: MetaData | None = None) -> None:
    """Run the migrations, as the whole of a service's `env.py`, on the connection that `upgrade` opened.

    Args:
        metadata: The service's tables, for `alembic revision --autogenerate`.
    """
    attributes = context.config.attributes
    connection = cast("Connection", attributes["connection"])
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table="alembic_version",
        version_table_schema=attributes["schema"],
        transaction_per_migration=False,
    )
    with context.begin_transaction():
        context.run_migrations()


if __name__ == "__main__":
    # Started by `meshkit.db.migrate`, which hands the address over on standard input.
    upgrade(sys.stdin.read(), sys.argv[1], sys.argv[2])
