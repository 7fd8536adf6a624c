"""The store of the LoRA library on PostgreSQL: one method, one transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any
from uuid import UUID

from meshkit.db import Database
from services.training.library.domain import LoraRecord, LoraState

_NAMES = tuple(field.name for field in fields(LoraRecord))
_COLUMNS = ", ".join(_NAMES)
_PLACES = ", ".join(f"%({name})s" for name in _NAMES)
_INSERT = f"INSERT INTO loras ({_COLUMNS}) VALUES ({_PLACES}) ON CONFLICT DO NOTHING"  # noqa: S608 -- fixed names


class PostgresLoraStore:
    """Implements `services.training.library.store.LoraStore`.

    Args:
        db: The service's database, migrated.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(self, record: LoraRecord) -> bool:
        """Write a new one; False where its name, or that of its training, is taken."""
        values = {name: getattr(record, name) for name in _NAMES} | {"notes": json.dumps(record.notes)}
        return bool(await self._changed(_INSERT, values))

    async def find(self, tenant: str, folder: str, name: str) -> LoraRecord | None:
        """Return the one that is stored under a name."""
        return await self._one("tenant = %s AND folder = %s AND name = %s AND state = 'STORED'", (tenant, folder, name))

    async def find_in_bin(self, tenant: str, folder: str, bin_name: str) -> LoraRecord | None:
        """Return the one that lies in the bin under a name."""
        return await self._one(
            "tenant = %s AND folder = %s AND bin_name = %s AND state = 'DELETED'", (tenant, folder, bin_name)
        )

    async def find_trained(self, training_id: UUID) -> LoraRecord | None:
        """Return the one that a training made."""
        return await self._one("training_id = %s", (training_id,))

    async def list_loras(
        self, tenants: Sequence[str], folder: str | None, *, deleted: bool, skip: int, limit: int
    ) -> list[LoraRecord]:
        """Return those of some tenants, newest first."""
        state = LoraState.DELETED if deleted else LoraState.STORED
        return await self._many(
            "tenant = ANY(%s) AND state = %s AND (%s::text IS NULL OR folder = %s) "
            "ORDER BY coalesce(deleted_at, created_at) DESC, id DESC OFFSET %s LIMIT %s",
            (list(tenants), state.value, folder, folder, skip, limit),
        )

    async def move_to_bin(self, record: LoraRecord, bin_name: str) -> LoraRecord | None:
        """Note that a stored one was deleted; None where it is gone, or the name in the bin is taken."""
        return await self._moved(
            "state = 'DELETED', bin_name = %(bin)s, deleted_at = now(), settled = false",
            "state = 'STORED' AND NOT EXISTS (SELECT FROM loras o WHERE o.tenant = l.tenant AND o.folder = l.folder "
            "AND o.bin_name = %(bin)s)",
            {"id": record.id, "bin": bin_name},
        )

    async def move_back(self, record: LoraRecord) -> LoraRecord | None:
        """Note that one of the bin is stored again; None where it is gone, or its name is taken."""
        return await self._moved(
            "state = 'STORED', deleted_at = NULL, settled = false",
            "state = 'DELETED' AND NOT EXISTS (SELECT FROM loras o WHERE o.tenant = l.tenant AND o.folder = l.folder "
            "AND o.name = l.name AND o.state = 'STORED')",
            {"id": record.id},
        )

    async def set_thumbnail(self, record: LoraRecord, path: str) -> None:
        """Note where a picture of one lies."""
        await self._changed("UPDATE loras SET thumbnail = %(path)s WHERE id = %(id)s", {"id": record.id, "path": path})

    async def settle(self, record: LoraRecord) -> None:
        """Note that the object lies where its state says."""
        await self._changed(
            "UPDATE loras SET settled = true, bin_name = CASE state WHEN 'DELETED' THEN bin_name END "
            "WHERE id = %(id)s AND state = %(state)s",
            {"id": record.id, "state": record.state.value},
        )

    async def remove(self, record: LoraRecord) -> None:
        """Forget one that never came to be."""
        await self._changed("DELETE FROM loras WHERE id = %(id)s AND NOT settled", {"id": record.id})

    async def unsettled(self, age_seconds: float, limit: int) -> list[LoraRecord]:
        """Return those whose object has not arrived for so long."""
        return await self._many(
            "NOT settled AND updated_at < now() - make_interval(secs => %s) ORDER BY updated_at LIMIT %s",
            (age_seconds, limit),
        )

    async def _moved(self, change: str, where: str, values: Mapping[str, Any]) -> LoraRecord | None:
        async def body() -> LoraRecord | None:
            async with self._db.transaction() as conn:
                # Deletions and restorations of one name take their turns; what they look at stands still meanwhile.
                await conn.execute(
                    "SELECT pg_advisory_xact_lock(hashtextextended(tenant || '/' || folder, 0)) FROM loras "
                    "WHERE id = %(id)s",
                    values,
                )
                cursor = await conn.execute(
                    f"UPDATE loras l SET {change}, updated_at = now() WHERE id = %(id)s AND {where} "  # noqa: S608 -- fixed texts
                    f"RETURNING {_COLUMNS}",
                    values,
                )
                row = await cursor.fetchone()
                return None if row is None else _record(row)

        return await self._db.retrying(body)

    async def _changed(self, statement: str, values: Mapping[str, Any]) -> int:
        async def body() -> int:
            async with self._db.transaction() as conn:
                cursor = await conn.execute(statement, values)
                return cursor.rowcount

        return await self._db.retrying(body)

    async def _one(self, where: str, values: Sequence[Any]) -> LoraRecord | None:
        found = await self._many(where, values)
        return found[0] if found else None

    async def _many(self, where: str, values: Sequence[Any]) -> list[LoraRecord]:
        async with self._db.connection() as conn:
            cursor = await conn.execute(f"SELECT {_COLUMNS} FROM loras WHERE {where}", values)  # noqa: S608 -- fixed texts
            return [_record(row) for row in await cursor.fetchall()]


def _record(row: Sequence[Any]) -> LoraRecord:
    values = dict(zip(_NAMES, row, strict=True))
    return LoraRecord(**{**values, "state": LoraState(values["state"])})
