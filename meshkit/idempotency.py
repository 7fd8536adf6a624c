"""Record and replay of creates: the owner stores its response with the key, in the create's own transaction.

A caller that never saw an answer sends the request again with the same `idempotency-key` and gets the first answer.
"""

from __future__ import annotations

import contextvars
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meshkit.errors import conflict, invalid

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from sqlalchemy import MetaData, Table

    from meshkit.db import Connection, Database

METADATA_KEY = "idempotency-key"
REPLAYED_KEY = "idempotent-replayed"
# Trailing metadata of an answer that was given before.
REPLAYED = ((REPLAYED_KEY, "true"),)
KEEP_HOURS = 48
_SELECT = "SELECT request_hash, response FROM idempotency_keys WHERE tenant = %s AND method = %s AND key = %s"
_KEY = re.compile(r"[\x21-\x7e]{1,255}")

_current: contextvars.ContextVar[str] = contextvars.ContextVar("atelier_idempotency_key", default="")


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A caller's key for a create.

    Attributes:
        method: Name of the method.
        key: The caller's key.
        request_hash: `request_hash` of the request; another request under the key is a conflict.
    """

    method: str
    key: str
    request_hash: bytes

    @classmethod
    def of_call(cls, method: str, request: Message) -> IdempotencyKey | None:
        """Return the key of the current call, if it has one.

        Args:
            method: Name of the method.
            request: The request as it arrived at the servicer, defaults applied.
        """
        key = current_key()
        return cls(method, key, request_hash(request)) if key else None


def idempotency_table(metadata: MetaData) -> Table:
    """Return the table, to be created by the owner's migration.

    Args:
        metadata: The owner's tables.
    """
    import sqlalchemy as sa  # noqa: PLC0415 -- only where tables are described

    return sa.Table(
        "idempotency_keys",
        metadata,
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("method", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("request_hash", sa.LargeBinary, nullable=False),
        sa.Column("response", sa.LargeBinary, nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Index("idempotency_keys_created_at", "created_at"),
    )


def enter(key: str) -> None:
    """Note the key of the current call.

    Args:
        key: Metadata `idempotency-key`, or empty.

    Raises:
        MeshError: `INVALID` where it is malformed.
    """
    if key and not _KEY.fullmatch(key):
        raise invalid(METADATA_KEY, "must have 1 to 255 printable ASCII characters without spaces")
    _current.set(key)


def current_key() -> str:
    """Return the key of the current call; empty where it has none."""
    return _current.get()


def request_hash(request: Message) -> bytes:
    """SHA-256 of a request, the same for equal requests of one build.

    Args:
        request: The request as it arrived at the servicer, defaults applied.
    """
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


async def find(conn: Connection, tenant: str, key: IdempotencyKey) -> bytes | None:
    """Look for an answer given before, without claiming the key: before work that a replay makes needless.

    Args:
        conn: A connection.
        tenant: Tenant of the call.
        key: The caller's key.

    Returns:
        The response to replay, or None where none is committed; a create under way is not waited for.

    Raises:
        MeshError: `CONFLICT` where the key was used for another request.
    """
    cursor = await conn.execute(_SELECT, (tenant, key.method, key.key))
    found = await cursor.fetchone()
    return None if found is None else _replay(found, key.request_hash)


async def claim(conn: Connection, tenant: str, key: IdempotencyKey) -> bytes | None:
    """Claim a key within the caller's transaction; a concurrent holder of the same key is waited for.

    Args:
        conn: Connection with the create's transaction.
        tenant: Tenant of the call.
        key: The caller's key.

    Returns:
        The response to replay, or None where the create is to be done and `store` called in the same transaction.

    Raises:
        MeshError: `CONFLICT` where the key was used for another request.
    """
    row = await _insert(conn, tenant, key)
    if row is not None:
        return None
    cursor = await conn.execute(f"{_SELECT} FOR UPDATE", (tenant, key.method, key.key))
    found = await cursor.fetchone()
    if found is None:
        # The purge was faster: the key is free again.
        return await claim(conn, tenant, key)
    return _replay(found, key.request_hash)


async def store(conn: Connection, tenant: str, key: IdempotencyKey, response: bytes) -> None:
    """Store the response of a claimed key, in the transaction of the create.

    Args:
        conn: Connection with the create's transaction.
        tenant: Tenant of the call.
        key: The caller's key.
        response: The response as it is sent.
    """
    await conn.execute(
        "UPDATE idempotency_keys SET response = %s WHERE tenant = %s AND method = %s AND key = %s",
        (response, tenant, key.method, key.key),
    )


async def purge(db: Database, batch: int = 5000) -> int:
    """Forget keys after 48 hours; body of a loop.

    Args:
        db: The owner's database.
        batch: Rows at most.

    Returns:
        How many were forgotten.
    """
    async with db.transaction() as conn:
        cursor = await conn.execute(
            "DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(SELECT ctid FROM idempotency_keys "
            "WHERE created_at < now() - make_interval(hours => %s) LIMIT %s))",
            (KEEP_HOURS, batch),
        )
        return cursor.rowcount


async def _insert(conn: Connection, tenant: str, key: IdempotencyKey) -> Any:
    # An insert of the same key that is not committed yet makes this one wait for its outcome.
    cursor = await conn.execute(
        "INSERT INTO idempotency_keys (tenant, method, key, request_hash) VALUES (%s, %s, %s, %s) "
        "ON CONFLICT DO NOTHING RETURNING 1",
        (tenant, key.method, key.key, key.request_hash),
    )
    return await cursor.fetchone()


def _replay(row: Any, request_hash: bytes) -> bytes | None:
    stored_hash, response = (row["request_hash"], row["response"]) if isinstance(row, dict) else row
    if bytes(stored_hash) != request_hash:
        raise conflict("The idempotency key was used for another request", reason="IDEMPOTENCY_KEY_REUSED")
    return None if response is None else bytes(response)
