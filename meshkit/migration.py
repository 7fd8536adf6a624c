"""Migrations of a service's schema by Alembic, and rendering of SQLAlchemy statements.

Apart from `meshkit.db`, so that SQLAlchemy and Alembic are loaded only by processes that use them. A service's
`migrations/env.py` is two lines: it imports its metadata and calls `run_env(metadata)`.
"""

from __future__ import annotations

import sys
import zlib
from typing import TYPE_CHECKING, Any, cast

import psycopg
from psycopg import sql
from sqlalchemy import create_engine, pool
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from meshkit import revisions
from meshkit.db import connection_options

if TYPE_CHECKING:
    from sqlalchemy import Connection, MetaData
    from sqlalchemy.sql.elements import ClauseElement

_DIALECT = PGDialect_psycopg(dbapi=psycopg)  # type: ignore[no-untyped-call] # SQLAlchemy leaves it untyped
_LOCK_SPACE = 0x61746C  # "atl": keeps these advisory locks apart from others in the same database


def upgrade(dsn: str, schema: str, script_package: str, revision: str = "head") -> None:
    """Brings a schema to a revision, under a lock; blocks.

    Args:
        dsn: `postgresql://` address.
        schema: The schema.
        script_package: Package with `env.py` and `versions/`.
        revision: Revision to reach.
    """
    from alembic import command  # noqa: PLC0415 -- heavy; rendering needs none of it
    from alembic.config import Config  # noqa: PLC0415

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
    from alembic import context  # noqa: PLC0415

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


def render(statement: ClauseElement) -> tuple[str, dict[str, Any]]:
    """Render a statement as SQL with `%(name)s` placeholders, and its values."""
    compiled = statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
    processors = getattr(compiled, "_bind_processors", {})
    values = {name: processors[name](value) if name in processors else value for name, value in compiled.params.items()}
    return str(compiled), values


if __name__ == "__main__":
    # Started by `meshkit.db.migrate`, which hands the address over on standard input.
    upgrade(sys.stdin.read(), sys.argv[1], sys.argv[2])
