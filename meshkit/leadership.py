"""Work that one replica at a time does: a row of the database names who, and until when by the database's clock.

A lock of a session would stay with a process that stands still for as long as its kernel answers for it. A claim to the
row ends by itself: the leader renews it while it works, and another replica takes it over once it has run out. A leader
that stood still may not know: what it writes carries `FENCE`, and what it sends it sends only while `valid`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshkit.pipeline import Pipeline

LEADER_SECONDS = 5.0
# How often a replica that stands by asks, however often it is woken.
_ASK_SECONDS = 1.0

CREATE_LEADERS = """
CREATE TABLE leaders (
    work text PRIMARY KEY,
    holder uuid NOT NULL,
    expires_at timestamptz NOT NULL
)
"""

CLAIM = """
INSERT INTO leaders AS l (work, holder, expires_at) VALUES (%s, %s, now() + %s * interval '1 second')
ON CONFLICT (work) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
WHERE l.holder = excluded.holder OR l.expires_at <= now()
RETURNING work
"""
"""Takes some work or keeps it; values are those of `FENCE`, and for how many seconds. No row where another has it."""

GIVE_BACK = "UPDATE leaders SET expires_at = now() WHERE work = %s AND holder = %s"
"""Lets another take it at once."""

FENCE = "EXISTS (SELECT FROM leaders WHERE work = %s AND holder = %s)"
"""Condition of a leader's writes; its values are those of `Leadership.fence`."""


class Leadership:
    """One replica's claim to some work.

    Args:
        work: Name of the work.
        seconds: How long a claim lasts without being renewed.
        clock: Monotonic seconds, which go on while the process stands still.
    """

    def __init__(
        self, work: str, *, seconds: float = LEADER_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._work = work
        self._holder = uuid.uuid4()
        self._seconds = seconds
        self._clock = clock
        self._until = float("-inf")
        self._ask_at = float("-inf")

    @property
    def valid(self) -> bool:
        """Whether the work is still this replica's."""
        return self._clock() < self._until

    @property
    def fence(self) -> tuple[str, uuid.UUID]:
        """Values of the condition `FENCE`."""
        return self._work, self._holder

    async def hold(self, conn: Pipeline) -> bool:
        """Take the work or keep it; asks the database only if half of the time has passed.

        Args:
            conn: A connection without a transaction.

        Returns:
            Whether the work is this replica's.
        """
        begun = self._clock()
        if self._until - begun > self._seconds / 2:
            return True
        if begun < self._ask_at:
            return False
        # A claim that a crash of PostgreSQL undoes may be another's afterwards: the fence tells.
        async with conn.transaction(durable=False):
            rows = await conn.execute(CLAIM, (*self.fence, self._seconds))
            held = await rows.fetchone() is not None
        # From before the question: by then the database had not begun to count.
        self._until = begun + self._seconds if held else float("-inf")
        self._ask_at = float("-inf") if held else begun + _ASK_SECONDS
        return held

    async def give_back(self, conn: Pipeline) -> None:
        """Let another replica take the work at once."""
        if self.valid:
            self.lose()
            async with conn.transaction(durable=False):
                await conn.execute(GIVE_BACK, self.fence)

    def lose(self) -> None:
        """Forget the claim: another replica has it, or it has to be asked for anew."""
        self._until = self._ask_at = float("-inf")
