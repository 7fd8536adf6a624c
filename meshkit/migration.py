"""Migrations of a service's schema by Alembic.

`meshkit.db` starts this module as a process and never imports it: SQLAlchemy and Alembic are loaded only by processes
that migrate. A service's `migrations/env.py` calls `run_env`.
"""

from __future__ import annotations

import random
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import psycopg
from alembic import command, context, op
from alembic.config import Config
from psycopg import errors as pg_errors
from psycopg import sql
from sqlalchemy import create_engine, pool
from sqlalchemy.exc import OperationalError

from meshkit import revisions
from meshkit.db import connection_options

if TYPE_CHECKING:
    from sqlalchemy import Connection, MetaData

_LOCK_SPACE = 0x61746C  # "atl": keeps these advisory locks apart from others in the same database

# Whoever comes after a migration that waits for a table waits too, and a backup reads every table until its end: a
# migration waits for a moment, is undone, lets others through, and comes again.
_LOCK_WAIT_MS = 2000
_PAUSE_SECONDS = (4.0, 8.0)
_TURN_SECONDS = 0.2


def upgrade(dsn: str, schema: str, script_package: str, revision: str = "head") -> None:
    """Bring a schema to a revision, under a lock; blocks until nobody holds what it changes.

    Args:
        dsn: `postgresql://` address.
        schema: The schema.
        script_package: Package with `env.py` and `versions/`.
        revision: Revision to reach.
    """
    options = connection_options(schema, 0, f"atelier-migrate-{schema}")
    # A migration may wait long between its statements while Python works.
    options["options"] += " -c idle_in_transaction_session_timeout=0"
    brief = {**options, "options": f"{options['options']} -c lock_timeout={_LOCK_WAIT_MS}"}
    config = Config()
    config.set_main_option("script_location", str(revisions.folder(script_package)).replace("%", "%%"))
    config.attributes["schema"] = schema
    with psycopg.connect(dsn, **{**options, "autocommit": True}) as guard:
        _take_turn(guard, zlib.crc32(schema.encode()) - 2**31)
        guard.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
        engine = create_engine(
            "postgresql+psycopg://", creator=lambda: psycopg.connect(dsn, **brief), poolclass=pool.NullPool
        )

        def run() -> None:
            with engine.connect() as connection:  # `run_env` begins the transaction, and ends it
                config.attributes["connection"] = connection
                command.upgrade(config, revision)

        _until_unlocked(run)
        engine.dispose()


def _take_turn(guard: psycopg.Connection[tuple[bool]], key: int) -> None:
    # Asked again and again: who waits in a statement holds a snapshot, for which an index that is built beside writers
    # would wait in its turn.
    while not (guard.execute("SELECT pg_try_advisory_lock(%s, %s)", (_LOCK_SPACE, key)).fetchone() or (False,))[0]:
        time.sleep(_TURN_SECONDS)


def _until_unlocked(run: Callable[[], None]) -> None:
    """Repeat a transaction that was undone because others hold what it needs."""
    while True:
        try:
            run()
        except OperationalError as error:
            if not isinstance(error.orig, pg_errors.LockNotAvailable | pg_errors.DeadlockDetected):
                raise
        else:
            return
        time.sleep(random.uniform(*_PAUSE_SECONDS))  # noqa: S311 -- jitter, not a secret


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


@contextmanager
def beside_writers() -> Iterator[None]:
    """Run statements of a revision outside transactions, as `CREATE INDEX CONCURRENTLY` needs it.

    What the revision, and those before it, did until then is committed. A process that dies in the middle leaves an
    index that is not valid, and the revision begins anew: each of its statements must allow that.
    """
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout TO 0")  # no writer waits for it meanwhile, and it shall not begin anew
        try:
            yield
        finally:
            op.execute("RESET lock_timeout")


if __name__ == "__main__":
    # Started by `meshkit.db.migrate`, which hands the address over on standard input.
    upgrade(sys.stdin.read(), sys.argv[1], sys.argv[2])
