"""Cameras on PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any
from uuid import uuid4

from atelier.events.v1 import live_pb2

from meshkit.leadership import CLAIM, GIVE_BACK
from services.monitoring.capture.cameras.domain import CameraRecord, CameraStatus, judge
from services.monitoring.capture.pages import PageFound, PageWanted
from services.monitoring.capture.postgres.changes import CaptureChanges

_COLUMNS = ", ".join(field.name for field in fields(CameraRecord))
# Of several replicas one says how cameras are, for as long as it does so every few seconds: two that see folders at
# different times, or of whom one has lost its drive, would contradict each other again and again.
_JUDGING = "cameras"
_JUDGING_SECONDS = 15.0
# One that comes again takes photos as it did when it was removed: whoever had disabled it is not overruled.
_ADD = """
INSERT INTO cameras (id) SELECT unnest(%s::text[])
ON CONFLICT (id) DO UPDATE SET removed_at = NULL WHERE cameras.removed_at IS NOT NULL
"""
# Locked in one order, so that replicas that judge at once do not wait for each other in a circle.
_JUDGED = f"SELECT {_COLUMNS}, now() FROM cameras WHERE removed_at IS NULL ORDER BY id FOR UPDATE"  # noqa: S608 -- fixed names
_FIND = f"SELECT {_COLUMNS} FROM cameras WHERE id = %s AND removed_at IS NULL"  # noqa: S608 -- fixed names
_REMOVE = "UPDATE cameras SET removed_at = now() WHERE id = %s AND removed_at IS NULL RETURNING id"
_STATES = "SELECT status, count(*) FROM cameras WHERE removed_at IS NULL AND enabled GROUP BY status"
_TURN = "UPDATE cameras SET previous_status = status, status = %s, message = %s WHERE id = %s"
_SAY = "UPDATE cameras SET message = %s WHERE id = %s"


class PostgresCameraStore:
    """Implements `services.monitoring.capture.cameras.store.CameraStore`.

    Args:
        changes: Changes rows.
    """

    def __init__(self, changes: CaptureChanges) -> None:
        self._changes = changes
        self._replica = uuid4()

    async def find_camera(self, camera_id: str) -> CameraRecord | None:
        """Return a camera."""
        async with self._changes.db.connection() as conn:
            cursor = await conn.execute(_FIND, (camera_id,))
            row = await cursor.fetchone()
            return None if row is None else _camera(row)

    async def list_cameras(self, page: PageWanted) -> PageFound[CameraRecord]:
        """Return cameras by their names."""
        async with self._changes.db.connection() as conn:
            cursor = await conn.execute(
                f"SELECT {_COLUMNS} FROM cameras WHERE removed_at IS NULL ORDER BY id OFFSET %s LIMIT %s",  # noqa: S608 -- fixed names
                (page.offset, page.limit),
            )
            found = [_camera(row) for row in await cursor.fetchall()]
            [(total,)] = await (await conn.execute("SELECT count(*) FROM cameras WHERE removed_at IS NULL")).fetchall()
        return PageFound(found, total)

    async def add_cameras(self, camera_ids: Collection[str]) -> None:
        """Write those that are not known yet, or were removed."""

        async def body() -> None:
            async with self._changes.db.transaction() as conn:
                await conn.execute(_ADD, (sorted(camera_ids),))

        await self._changes.db.retrying(body)

    async def names(self) -> Sequence[str]:
        """Return the names of all."""
        async with self._changes.db.connection() as conn:
            return [
                name
                for (name,) in await (await conn.execute("SELECT id FROM cameras WHERE removed_at IS NULL")).fetchall()
            ]

    async def disabled(self) -> frozenset[str]:
        """Return those whose photos are not taken."""
        async with self._changes.db.connection() as conn:
            cursor = await conn.execute("SELECT id FROM cameras WHERE NOT enabled")
            return frozenset(name for (name,) in await cursor.fetchall())

    async def set_enabled(self, camera_id: str, *, enabled: bool) -> CameraRecord | None:
        """Switch one on or off, and tell of it where that changes it; None where there is no such."""

        async def body() -> None:
            async with self._changes.change() as change:
                cursor = await change.conn.execute(
                    "UPDATE cameras SET enabled = %s WHERE id = %s AND enabled <> %s AND removed_at IS NULL",
                    (enabled, camera_id, enabled),
                )
                if cursor.rowcount:
                    told = live_pb2.CameraEnabledEvent if enabled else live_pb2.CameraDisabledEvent
                    change.announce(told(camera_id=camera_id))

        await self._changes.db.retrying(body)
        return await self.find_camera(camera_id)

    async def remove_camera(self, camera_id: str) -> bool:
        """Remove one; whether it was there."""

        async def body() -> bool:
            async with self._changes.db.transaction() as conn:
                row = await (await conn.execute(_REMOVE, (camera_id,))).fetchone()
            return row is not None

        return await self._changes.db.retrying(body)

    async def judge_all(self, troubles: Mapping[str, str], offline_seconds: float, notes: Mapping[str, str]) -> int:
        """Write the state of each, and what is said of it, unless another does; return how many states have changed."""

        async def body() -> int:
            changed = 0
            async with self._changes.change() as change:
                claim = await change.conn.execute(CLAIM, (_JUDGING, self._replica, _JUDGING_SECONDS))
                if await claim.fetchone() is None:
                    return 0
                for *row, now in await (await change.conn.execute(_JUDGED)).fetchall():
                    camera = _camera(row)
                    status, message = judge(
                        troubles.get(camera.id), camera.last_file_at, now, offline_seconds, notes.get(camera.id)
                    )
                    if status is camera.status:
                        if message != camera.message:
                            await change.conn.execute(_SAY, (message, camera.id))
                        continue
                    await change.conn.execute(_TURN, (status.value, message, camera.id))
                    change.announce(
                        live_pb2.CameraStatusChangedEvent(
                            camera_id=camera.id,
                            status=status.value,
                            previous_status=camera.status.value,
                            message=message,
                        )
                    )
                    changed += 1
            return changed

        return await self._changes.db.retrying(body)

    async def count_states(self) -> Mapping[CameraStatus, int]:
        """Return how many of those whose photos are taken are in each state."""
        async with self._changes.db.connection() as conn:
            found = dict(await (await conn.execute(_STATES)).fetchall())
        return {status: found.get(status.value, 0) for status in CameraStatus}

    async def judge_no_more(self) -> None:
        """Let another replica judge at once."""
        async with self._changes.db.transaction() as conn:
            await conn.execute(GIVE_BACK, (_JUDGING, self._replica))


def _camera(row: Sequence[Any]) -> CameraRecord:
    camera_id, enabled, status, previous, *rest = row
    return CameraRecord(camera_id, enabled, CameraStatus(status), CameraStatus(previous), *rest)
