"""Group commit: requests that arrive together share one transaction, and each is answered after its commit."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from meshkit import metrics

Item = TypeVar("Item")
Answer = TypeVar("Answer")

GATHER_SECONDS = 0.003

_SIZES = metrics.histogram(
    "tasks_group_commit_members", "Requests that shared a transaction", ("kind",), (1, 2, 4, 8, 16, 32, 64, 128)
)


class Batcher(Generic[Item, Answer]):
    """Gathers what arrives while a group is being committed into the next group.

    A request that arrives alone waits for nobody.

    Args:
        kind: What is gathered, for the metric.
        commit: Commits a group; an answer for each member, in order, an exception where that member failed.
        max_items: Members of a group at most.
        gather_seconds: Wait before a group that follows another of several members: whoever sent that one is about to
            send again, and a commit costs the same for one as for ten.
    """

    def __init__(
        self,
        kind: str,
        commit: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]],
        max_items: int = 128,
        gather_seconds: float = GATHER_SECONDS,
    ) -> None:
        self._kind = kind
        self._sizes = _SIZES.labels(kind)
        self._commit = commit
        self._max = max_items
        self._gather = gather_seconds
        self._waiting: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Answer:
        """Add a request and waits until its group is committed.

        Raises:
            Exception: What became of this member.
        """
        return await self.enqueue(item)

    def enqueue(self, item: Item) -> asyncio.Future[Answer]:
        """Add a request; the future is what `submit` would wait for.

        Those that are added before the caller waits again are committed together.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run(), name=f"group-commit-{self._kind}")
        return future

    async def close(self) -> None:
        """Wait for what is under way."""
        if self._running is not None:
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        busy = False
        while self._waiting:
            # Whoever is ready to run now may join.
            await asyncio.sleep(self._gather if busy else 0)
            members = [self._waiting.popleft() for _ in range(min(self._max, len(self._waiting)))]
            self._sizes.observe(len(members))
            await self._settle(members)
            busy = len(members) > 1

    async def _settle(self, members: Sequence[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._commit([item for item, _ in members])
        except Exception as error:
            answers = [error] * len(members)
        except asyncio.CancelledError:
            for _, future in members:
                future.cancel()
            raise
        for (_, future), answer in zip(members, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
