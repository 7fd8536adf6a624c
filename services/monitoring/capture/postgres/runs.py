"""Workflows of photos on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from services.monitoring.capture.postgres.changes import CaptureChanges
from services.monitoring.capture.runs.domain import PhotoRunState, RunRecord

_SELECT = """
SELECT r.photo_id, r.stored_path, p.path, r.state, r.workflow_id, r.error, r.results
FROM photo_runs r JOIN photos p ON p.id = r.photo_id
"""
_STARTED = "UPDATE photo_runs SET state = 'RUNNING', workflow_id = %s WHERE photo_id = %s AND state = 'WAITING'"
_ENDED = """
UPDATE photo_runs SET state = %s, error = %s, results = %s, ended_at = clock_timestamp()
WHERE photo_id = %s AND state IN ('WAITING', 'RUNNING')
"""
# Written with the findings of the photo.
NEW_RUN = "INSERT INTO photo_runs (photo_id, stored_path, state) VALUES (%s, %s, 'WAITING') ON CONFLICT DO NOTHING"


class PostgresRunStore:
    """Implements `services.monitoring.capture.runs.store.RunStore`.

    Args:
        changes: Changes rows.
    """

    def __init__(self, changes: CaptureChanges) -> None:
        self._changes = changes

    async def find_run(self, photo_id: UUID) -> RunRecord | None:
        """Return the workflow of a photo."""
        async with self._changes.db.connection() as conn:
            row = await (await conn.execute(f"{_SELECT} WHERE r.photo_id = %s", (photo_id,))).fetchone()
            return None if row is None else run(row)

    async def runs_in(self, state: PhotoRunState, most: int) -> Sequence[RunRecord]:
        """Return so many in a state, the oldest first."""
        query = f"{_SELECT} WHERE r.state = %s ORDER BY r.created_at, r.photo_id LIMIT %s"
        async with self._changes.db.connection() as conn:
            return [run(row) for row in await (await conn.execute(query, (state.value, most))).fetchall()]

    async def started(self, photo_id: UUID, workflow_id: UUID) -> None:
        """Note the workflow that was made for a photo."""
        await self._write(_STARTED, (workflow_id, photo_id))

    async def settle_run(self, run: RunRecord) -> None:
        """Write how a run has ended, once."""
        await self._write(_ENDED, (run.state.value, run.error, list(run.results), run.photo_id))

    async def _write(self, query: str, values: tuple[object, ...]) -> None:
        async def body() -> None:
            async with self._changes.db.transaction() as conn:
                await conn.execute(query, values)

        await self._changes.db.retrying(body)


def run(row: Sequence[Any]) -> RunRecord:
    """Return a row as a record."""
    photo_id, stored_path, path, state, workflow_id, error, results = row
    return RunRecord(photo_id, stored_path, path, PhotoRunState(state), workflow_id, error, tuple(results))
