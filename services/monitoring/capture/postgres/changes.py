"""How rows are changed here: in one transaction with the messages that tell listeners of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.message import Message

from meshkit import outbox
from meshkit.db import Database
from meshkit.live.capture import subject_of
from meshkit.outbox import OutboxEvent, event_headers


class CaptureChange:
    """A change of rows under way.

    Args:
        conn: The connection with its transaction.
        tenant: Tenant of the rows.
    """

    def __init__(self, conn: Any, tenant: str) -> None:
        self.conn = conn
        self._tenant = tenant
        self.events: list[OutboxEvent] = []

    def announce(self, message: Message) -> None:
        """Tell listeners something, if the transaction is committed.

        Args:
            message: A message of `live.proto`, of a kind that capture sends.
        """
        subject, type_ = subject_of(message)
        headers = event_headers(version=0, tenant=self._tenant, event_type=type_, traceparent="")
        self.events.append(OutboxEvent(subject, message.SerializeToString(deterministic=True), headers))


class CaptureChanges:
    """Changes rows; every room's store has one.

    Args:
        db: The database, migrated.
        tenant: Tenant of the rows.
        on_commit: Called after a commit that wrote messages.
    """

    def __init__(self, db: Database, tenant: str, on_commit: Callable[[], None]) -> None:
        self.db = db
        self.tenant = tenant
        self._on_commit = on_commit

    @asynccontextmanager
    async def change(self) -> AsyncIterator[CaptureChange]:
        """Yield a transaction; what was announced in it is written at its end, in that order.

        Within `Database.retrying` where the work may be repeated.

        Raises:
            DatabaseUnavailableError: No connection could be had, or it was lost; whether a commit took place is then
                unknown.
        """
        async with self.db.transaction() as conn:
            change = CaptureChange(conn, self.tenant)
            yield change
            await outbox.insert(conn, change.events)
        if change.events:
            self._on_commit()
