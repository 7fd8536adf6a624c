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
SELECT DISTINCT ON (file) file, size, modified_ns FROM photos WHERE file = ANY(%s::bytea[]) AND NOT missed
ORDER BY file, modified_ns DESC
"""
# What was missed under its former name is not this photo any more, because nobody has looked at it.
_OTHERS = """
SELECT s.file, p.file FROM unnest(%s::bytea[], %s::text[], %s::text[]) AS s (file, camera_id, sha256)
JOIN photos p ON p.camera_id = s.camera_id AND p.sha256 = s.sha256 AND p.file <> s.file
WHERE s.sha256 <> '' AND NOT p.missed
"""
_MOVE = """
UPDATE photos SET file = %(file)s, path = %(path)s, modified_ns = %(modified_ns)s
WHERE file = %(moved_from)s AND sha256 = %(sha256)s AND NOT missed
    AND NOT EXISTS (SELECT FROM photos o WHERE o.file = %(file)s AND o.sha256 = %(sha256)s AND NOT o.missed)
"""
# Whoever gathers the photos of a camera waits, or is waited for: a photo that is seen before the end of its batch is
# there at that end. Replicas that take the same files wait here as well, in one order, and not on each other's rows.
_HOLD = "SELECT FROM cameras WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE"
_TAKE = """
WITH taken AS (
    INSERT INTO photos AS p (id, camera_id, file, path, size, modified_ns, sha256, state, error, seen_at)
    SELECT s.id, s.camera_id, s.file, s.path, s.size, s.modified_ns, s.sha256,
        CASE WHEN s.error IS NULL THEN 'WAITING' ELSE 'FAILED' END, s.error, clock_timestamp()
    FROM unnest(%(ids)s::uuid[], %(cameras)s::text[], %(files)s::bytea[], %(paths)s::text[], %(sizes)s::bigint[],
        %(modified)s::bigint[], %(hashes)s::text[], %(errors)s::text[])
        WITH ORDINALITY AS s (id, camera_id, file, path, size, modified_ns, sha256, error, n)
    ORDER BY s.n
    ON CONFLICT (file, sha256) WHERE NOT missed DO UPDATE SET modified_ns = excluded.modified_ns, size = excluded.size
    RETURNING p.id, p.camera_id, p.seen_at
), newest AS (
    SELECT camera_id, max(seen_at) AS seen_at FROM taken WHERE id = ANY(%(ids)s::uuid[]) GROUP BY camera_id
), told AS (
    UPDATE cameras c SET last_file_at = greatest(c.last_file_at, n.seen_at) FROM newest n WHERE c.id = n.camera_id
)
SELECT count(*) FROM taken WHERE id = ANY(%(ids)s::uuid[])
"""


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
        """Return size and time of change that files had when they were seen last; not of those unseen or missed."""
        async with self._changes.db.connection() as conn:
            cursor = await conn.execute(_KNOWN, (list(files),))
            return {bytes(file): (size, modified) for file, size, modified in await cursor.fetchall()}

    async def other_files(self, seen: Sequence[SeenFile]) -> Sequence[tuple[bytes, bytes]]:
        """Return files with others of the same camera that had the same content when they were seen last."""
        values = ([one.file for one in seen], [one.camera_id for one in seen], [one.sha256 for one in seen])
        async with self._changes.db.connection() as conn:
            cursor = await conn.execute(_OTHERS, values)
            return [(bytes(file), bytes(other)) for file, other in await cursor.fetchall()]

    async def take(self, seen: Sequence[SeenFile], moved: Mapping[bytes, bytes]) -> int:
        """Write photos; of those whose content is known for their file the time of change alone."""
        ids = [uuid4() for _ in seen]

        async def body() -> int:
            async with self._changes.db.transaction() as conn:
                await conn.execute(_HOLD, (sorted({one.camera_id for one in seen}),))
                done = {one.file for one in seen if one.file in moved and await self._move(conn, one, moved[one.file])}
                left = [(photo_id, one) for photo_id, one in zip(ids, seen, strict=True) if one.file not in done]
                cursor = await conn.execute(_TAKE, _columns(left))
                [(count,)] = await cursor.fetchall()
                return int(count)

        return await self._changes.db.retrying(body)

    @staticmethod
    async def _move(conn: Any, one: SeenFile, moved_from: bytes) -> bool:
        values = {
            "file": one.file,
            "path": shown(one.file),
            "modified_ns": one.modified_ns,
            "sha256": one.sha256,
            "moved_from": moved_from,
        }
        return bool((await conn.execute(_MOVE, values)).rowcount)


def _columns(taken: Sequence[tuple[UUID, SeenFile]]) -> dict[str, list[Any]]:
    return {
        "ids": [photo_id for photo_id, _ in taken],
        "cameras": [one.camera_id for _, one in taken],
        "files": [one.file for _, one in taken],
        "paths": [shown(one.file) for _, one in taken],
        "sizes": [one.size for _, one in taken],
        "modified": [one.modified_ns for _, one in taken],
        "hashes": [one.sha256 for _, one in taken],
        "errors": [one.error for _, one in taken],
    }


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
