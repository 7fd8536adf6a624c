"""What PostgreSQL counts of itself; every role may read it."""

from __future__ import annotations

from meshkit.db import Database
from services.monitoring.performance.domain import DatabaseCounters

_COUNTERS = """
SELECT (SELECT sum(numbackends) FROM pg_stat_database)::bigint, current_setting('max_connections')::bigint,
    xact_commit + xact_rollback, 100.0::float8 * blks_hit / nullif(blks_hit + blks_read, 0)
FROM pg_stat_database WHERE datname = current_database()
"""


class DatabaseActivity:
    """Reads the counters of a database.

    Args:
        db: The database.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    async def read(self) -> DatabaseCounters:
        """Return the counters of now."""
        async with self._db.connection() as conn:
            [row] = await (await conn.execute(_COUNTERS)).fetchall()
        return DatabaseCounters(*row)
