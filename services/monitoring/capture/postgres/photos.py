"""Photos and what was found on them, on PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any
from uuid import UUID, uuid4

from services.monitoring.capture.pages import PageFound, PageWanted
from services.monitoring.capture.photos.domain import (
    DetectionRecord,
    PhotoRecord,
    PhotoState,
    PhotosWanted,
    SeenFile,
    shown,
)
from services.monitoring.capture.postgres.changes import CaptureChanges

COLUMNS = ", ".join(field.name for field in fields(PhotoRecord))
_STATE = [field.name for field in fields(PhotoRecord)].index("state")
_DETECTION = ", ".join(field.name for field in fields(DetectionRecord))
_WANTED = (
    "deleted_at IS NULL AND (%(camera_id)s::text IS NULL OR camera_id = %(camera_id)s) "
    "AND (%(state)s::text IS NULL OR state = %(state)s) AND (%(batch_id)s::uuid IS NULL OR batch_id = %(batch_id)s)"
)
# Of the contents that a file has had, the one that was looked at last.
_KNOWN = """
SELECT DISTINCT ON (file) file, size, modified_ns FROM photos WHERE file = ANY(%s::bytea[])
ORDER BY file, modified_ns DESC
"""
_OTHERS = "SELECT file FROM photos WHERE camera_id = %s AND sha256 = %s AND sha256 <> '' AND file <> %s"
_MOVE = """
UPDATE photos SET file = %(file)s, path = %(path)s, modified_ns = %(modified_ns)s
WHERE file = %(moved_from)s AND sha256 = %(sha256)s
    AND NOT EXISTS (SELECT FROM photos o WHERE o.file = %(file)s AND o.sha256 = %(sha256)s)
"""
_TAKE = """
INSERT INTO photos AS p (id, camera_id, file, path, size, modified_ns, sha256, state, error, seen_at)
VALUES (%(id)s, %(camera_id)s, %(file)s, %(path)s, %(size)s, %(modified_ns)s, %(sha256)s, %(state)s, %(error)s,
    clock_timestamp())
ON CONFLICT (file, sha256) DO UPDATE SET modified_ns = excluded.modified_ns, size = excluded.size
RETURNING p.id, p.seen_at
"""
_LAST_FILE = "UPDATE cameras SET last_file_at = greatest(last_file_at, %s) WHERE id = %s"


class PostgresPhotoStore:
    """Implements `services.monitoring.capture.photos.store.PhotoStore`.

    Args:
        changes: Changes rows.
    """

    def __init__(self, changes: CaptureChanges) -> None:
        self._changes = changes

    async def find_photo(self, photo_id: UUID) -> tuple[PhotoRecord, Sequence[DetectionRecord]] | None:
        """Return a photo with what was found on it."""
        async with self._changes.db.connection() as conn:
            cursor = await conn.execute(
                f"SELECT {COLUMNS} FROM photos WHERE id = %s AND deleted_at IS NULL",  # noqa: S608 -- fixed names
                (photo_id,),
            )
            row = await cursor.fetchone()
            if row is None:
                return None
            found = await conn.execute(
                f"SELECT {_DETECTION} FROM detections WHERE photo_id = %s ORDER BY id",  # noqa: S608 -- fixed names
                (photo_id,),
            )
            return photo(row), [detection(one) for one in await found.fetchall()]

    async def list_photos(self, wanted: PhotosWanted, page: PageWanted) -> PageFound[PhotoRecord]:
        """Return photos, newest first."""
        values = {
            "camera_id": wanted.camera_id,
            "state": None if wanted.state is None else wanted.state.value,
            "batch_id": wanted.batch_id,
            "offset": page.offset,
            "limit": page.limit,
        }
        async with self._changes.db.connection() as conn:
            cursor = await conn.execute(
                f"SELECT {COLUMNS} FROM photos WHERE {_WANTED} "  # noqa: S608 -- fixed texts
                "ORDER BY seen_at DESC, id DESC OFFSET %(offset)s LIMIT %(limit)s",
                values,
            )
            found = [photo(row) for row in await cursor.fetchall()]
            counted = await conn.execute(f"SELECT count(*) FROM photos WHERE {_WANTED}", values)  # noqa: S608 -- fixed texts
            [(total,)] = await counted.fetchall()
        return PageFound(found, total)

    async def known_files(self, files: Collection[bytes]) -> Mapping[bytes, tuple[int, int]]:
        """Return size and time of change that files had when they were seen last; those never seen are left out."""
        async with self._changes.db.connection() as conn:
            cursor = await conn.execute(_KNOWN, (list(files),))
            return {bytes(file): (size, modified) for file, size, modified in await cursor.fetchall()}

    async def other_files(self, camera_id: str, sha256: str, file: bytes) -> Sequence[bytes]:
        """Return the other files of a camera that had this content when they were seen last."""
        async with self._changes.db.connection() as conn:
            cursor = await conn.execute(_OTHERS, (camera_id, sha256, file))
            return [bytes(one) for (one,) in await cursor.fetchall()]

    async def take(self, seen: SeenFile, moved_from: bytes | None = None) -> bool:
        """Write a photo, unless this content of this file is known; then its time of change alone."""
        new_id = uuid4()
        state = PhotoState.WAITING if seen.error is None else PhotoState.FAILED
        values = {
            "id": new_id,
            "camera_id": seen.camera_id,
            "file": seen.file,
            "path": shown(seen.file),
            "size": seen.size,
            "modified_ns": seen.modified_ns,
            "sha256": seen.sha256,
            "state": state.value,
            "error": seen.error,
            "moved_from": moved_from,
        }

        async def body() -> bool:
            async with self._changes.db.transaction() as conn:
                if moved_from is not None:
                    cursor = await conn.execute(_MOVE, values)
                    if cursor.rowcount:
                        return False
                [(found, seen_at)] = await (await conn.execute(_TAKE, values)).fetchall()
                if found != new_id:
                    return False
                await conn.execute(_LAST_FILE, (seen_at, seen.camera_id))
                return True

        return await self._changes.db.retrying(body)


def photo(row: Sequence[Any]) -> PhotoRecord:
    """Return a row of `COLUMNS` as a record."""
    found = list(row)
    found[_STATE] = PhotoState(found[_STATE])
    found[2] = bytes(found[2])
    return PhotoRecord(*found)


def detection(row: Sequence[Any]) -> DetectionRecord:
    """Return a row of `detections` as a record."""
    number, photo_id, camera_id, object_type, label, confidence, bbox, detected_at = row
    place = None if bbox is None else (bbox[0], bbox[1], bbox[2], bbox[3])
    return DetectionRecord(number, photo_id, camera_id, object_type, label, confidence, place, detected_at)
