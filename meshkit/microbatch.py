"""Micro-batching: items that come at about the same time are handled as one group.

A call, a commit or a batch on a device costs nearly the same for one item as for ten. So a group that is not full waits
a little for more, its *linger*, but only where more are expected: an item that is alone goes at once.

- `Groups` is the pure core: which items form a group, and when each group is ready. Whoever has a place for a group
  pulls it.
- `MicroBatcher` drives the core on the event loop and hands each group to a coroutine.
- `GroupCall` is a micro-batcher of requests: each waits for an answer of its own.

How long each linger is, and why, stands in `meshkit.lingers`.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from meshkit.logging import get_logger
from meshkit.loops import cancel

_log = get_logger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(slots=True)
class _Group(Generic[Item]):
    items: list[Item]
    ready_at: float
    key: Hashable | None = None
    size: int = 0


class Groups(Generic[Item]):
    """Waiting items in groups, and when each group is ready. Pure: the clock's reading is an argument.

    Groups are taken in the order of their first item, except that one that still lingers lets later ones go first.

    Args:
        linger: How long a group that is not full waits for more.
        max_items: Items of a group at most.
        max_bytes: Bytes of a group at most, if limited; a larger item is a group of its own.
    """

    def __init__(self, *, linger: float, max_items: int, max_bytes: int | None = None) -> None:
        self._linger = linger
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._groups: list[_Group[Item]] = []
        self._open: dict[Hashable, _Group[Item]] = {}  # the group that the next item of a key joins
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, item: Item, now: float, *, key: Hashable | None = (), size: int = 0, more: bool = True) -> float:
        """Let an item wait.

        Args:
            item: The item.
            now: The clock's reading.
            key: Items of one group have equal keys; None for an item that is a group of its own.
            size: Bytes of the item.
            more: Whether more are expected; where none is, the group waits no longer.

        Returns:
            When the item's group is ready.
        """
        self._count += 1
        if key is None or self._max_items == 1:
            self._groups.append(_Group([item], now))
            return now
        group = self._open.get(key)
        if group is not None and self._max_bytes is not None and group.size + size > self._max_bytes:
            group.ready_at = now
            group = None
        if group is None:
            group = self._open[key] = _Group([], now + self._linger, key)
            self._groups.append(group)
        group.items.append(item)
        group.size += size
        if len(group.items) >= self._max_items:
            del self._open[key]
            group.ready_at = now
        elif not more:
            group.ready_at = now
        return group.ready_at

    def put_back(self, items: list[Item], now: float) -> None:
        """Let items that were taken and not handled wait at the head, as a group that nothing joins."""
        self._count += len(items)
        self._groups.insert(0, _Group(items, now))

    def linger_from(self, now: float, *, more: bool) -> None:
        """Let the groups that are not full linger from now on, or no longer where no more are expected."""
        for group in self._open.values():
            group.ready_at = now + self._linger if more else now

    def take(self, now: float) -> list[Item]:
        """Take the first group that is ready; empty where none is."""
        for index, group in enumerate(self._groups):
            if group.ready_at <= now:
                del self._groups[index]
                self._close(group)
                self._count -= len(group.items)
                return group.items
        return []

    def take_all(self) -> list[Item]:
        """Take all items, in the order of their groups."""
        items = [item for group in self._groups for item in group.items]
        self._groups.clear()
        self._open.clear()
        self._count = 0
        return items

    def ready_at(self) -> float | None:
        """When the next group is ready; None where nothing waits."""
        return min((group.ready_at for group in self._groups), default=None)

    def remove(self, item: Item) -> bool:
        """Take out an item that is not to be handled; False where it does not wait."""
        for index, group in enumerate(self._groups):
            if item in group.items:
                group.items.remove(item)
                self._count -= 1
                if not group.items:
                    del self._groups[index]
                    self._close(group)
                return True
        return False

    def _close(self, group: _Group[Item]) -> None:
        if group.key is not None and self._open.get(group.key) is group:
            del self._open[group.key]


# Whether more items are expected: of how many wait, and how many the last group had; 0 where nothing was under way.
Expects = Callable[[int, int], bool]


def after_several(_waiting: int, last: int) -> bool:
    """Expect more after a group of several: whoever got its answers is about to come again."""
    return last > 1


class MicroBatcher(Generic[Item]):
    """Hands items on in groups.

    Groups follow each other: what comes while one is under way gathers for the next, which lingers from the end of the
    one before. Or several are under way at once, see `at_once`.

    A group runs in a task and a context of its own: it belongs to no single caller, so it bears the trace of none.

    Args:
        handle: Handles a group. It must tell those who wait itself, also of failures.
        name: What is handled, for logs.
        linger: How long a group that is not full waits for more, where more are expected.
        max_items: Items of a group at most.
        max_bytes: Bytes of a group at most, if limited.
        more: Whether more are expected.
        at_once: Groups under way at most; None for any number, which wait for each other not at all.
        patience: How long a group waits for one under way before it sets out beside it, where `at_once` allows.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        handle: Callable[[list[Item]], Awaitable[None]],
        *,
        name: str,
        linger: float,
        max_items: int,
        max_bytes: int | None = None,
        more: Expects = after_several,
        at_once: int | None = 1,
        patience: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._handle = handle
        self._name = name
        self._more = more
        self._at_once = at_once
        self._patience = patience
        self._clock = clock
        self._groups: Groups[Item] = Groups(linger=linger, max_items=max_items, max_bytes=max_bytes)
        self._last = 0
        self._blocked = False  # the next group waits for one that starts or is under way
        self._starting: asyncio.Task[None] | None = None  # has not taken its group yet
        self._running: set[asyncio.Task[None]] = set()
        self._lingering: asyncio.TimerHandle | None = None
        self._waiting_beside: asyncio.TimerHandle | None = None

    def put(self, item: Item, *, key: Hashable | None = (), size: int = 0) -> None:
        """Add an item; those that are added before the caller waits again go together.

        Args:
            item: The item.
            key: Items of one group have equal keys.
            size: Bytes of the item.
        """
        now = self._clock()
        more = self._more(len(self._groups) + 1, self._last)
        ready_at = self._groups.add(item, now, key=key, size=size, more=more)
        if not self._blocked:
            self._set_out(ready_at, now)

    async def finish(self) -> None:
        """Handle what waits, without lingering, and wait for its end."""
        while self._running or len(self._groups):
            ready_at = self._groups.ready_at()
            if ready_at is not None and not self._blocked:
                self._start(ready_at)
            await asyncio.wait(self._running)

    async def close(self) -> list[Item]:
        """Cancel what is under way; return what waited, in order."""
        items = self._groups.take_all()
        self._stop_timers()
        await cancel(self._running)
        return items

    def _set_out(self, ready_at: float, now: float) -> None:
        """Start the next group, now or when it has lingered."""
        if ready_at <= now:
            self._start(ready_at)
        elif self._lingering is None:
            self._lingering = asyncio.get_running_loop().call_later(
                ready_at - now, self._start, ready_at, context=contextvars.Context()
            )

    def _start(self, ready_at: float) -> None:
        self._stop_timers()
        self._blocked = True
        task = asyncio.get_running_loop().create_task(
            self._run(ready_at), name=f"group-{self._name}", context=contextvars.Context()
        )
        self._starting = task
        self._running.add(task)
        task.add_done_callback(self._end)

    async def _run(self, ready_at: float) -> None:
        # Whoever is ready to run now may join.
        await asyncio.sleep(0)
        # A timer may fire a little before its time.
        items = self._groups.take(max(ready_at, self._clock()))
        task, self._starting = self._starting, None
        assert task is not None, "one group starts at a time"
        self._last = len(items)
        if self._at_once is None:
            self._unblock()
        elif len(self._running) < self._at_once:
            self._waiting_beside = asyncio.get_running_loop().call_later(self._patience, self._unblock)
        try:
            await self._handle(items)
        except Exception:  # the next groups are not to suffer for it
            _log.exception("group_failed", group=self._name, items=len(items))
        finally:
            # At once: those whom the group answers come again after this, so they find nothing under way.
            self._running.discard(task)
            self._unblock()

    def _end(self, task: asyncio.Task[None]) -> None:
        if self._starting is task:  # it was cancelled before it took its group
            self._starting = None
            self._running.discard(task)
            self._unblock()

    def _unblock(self) -> None:
        """Let the next group set out, unless one is starting already."""
        if not self._blocked or self._starting is not None:
            return
        self._stop_timers()
        self._blocked = False
        if not len(self._groups):
            self._last = 0
            return
        now = self._clock()
        self._groups.linger_from(now, more=self._more(len(self._groups), self._last))
        ready_at = self._groups.ready_at()
        assert ready_at is not None, "something waits"
        self._set_out(ready_at, now)

    def _stop_timers(self) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        if self._waiting_beside is not None:
            self._waiting_beside.cancel()
            self._waiting_beside = None


class GroupCall(Generic[Item, Answer]):
    """Requests that share a call, one group after the other; each is answered by itself.

    Args:
        call: Makes the call for a group: an answer for each request, in order, an exception where that one failed.
        name: What is called, for logs.
        linger: How long a group that is not full waits for more, where more are expected.
        max_items: Requests of a group at most.
        max_bytes: Bytes of a group at most, if limited.
        more: Whether more are expected.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]],
        *,
        name: str,
        linger: float,
        max_items: int = 128,
        max_bytes: int | None = None,
        more: Expects = after_several,
    ) -> None:
        self._call = call
        self._batcher: MicroBatcher[tuple[Item, asyncio.Future[Answer]]] = MicroBatcher(
            self._answer, name=name, linger=linger, max_items=max_items, max_bytes=max_bytes, more=more
        )

    async def submit(self, item: Item, *, key: Hashable | None = (), size: int = 0) -> Answer:
        """Add a request and wait for its answer.

        Args:
            item: The request.
            key: Requests of one group have equal keys.
            size: Bytes of the request.

        Raises:
            Exception: What became of this request.
        """
        return await self.enqueue(item, key=key, size=size)

    def enqueue(self, item: Item, *, key: Hashable | None = (), size: int = 0) -> asyncio.Future[Answer]:
        """Add a request; return what `submit` would wait for. Requests added before the caller waits go together."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._batcher.put((item, future), key=key, size=size)
        return future

    async def finish(self) -> None:
        """Answer all requests, and wait for that."""
        await self._batcher.finish()

    async def close(self) -> None:
        """Cancel the call under way; whoever waits for an answer is cancelled."""
        for _, future in await self._batcher.close():
            future.cancel()

    async def _answer(self, members: Sequence[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._call([item for item, _ in members])
            settled = list(zip(members, answers, strict=True))
        except Exception as error:  # nobody else would tell those who wait
            settled = [(member, error) for member in members]
        except asyncio.CancelledError:
            for _, future in members:
                future.cancel()
            raise
        for (_, future), answer in settled:
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
