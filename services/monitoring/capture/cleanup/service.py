"""What is forgotten, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from uuid import UUID

from meshkit import metrics
from meshkit.logging import get_logger
from meshkit.loops import Loop
from services.monitoring.capture.cleanup.files import PhotoFiles
from services.monitoring.capture.cleanup.store import ForgettingStore, KeptFile

_log = get_logger(__name__)

_BATCH = 500
_SECONDS_A_DAY = 86_400.0
_FIRST = UUID(int=0)
_FORGOTTEN = metrics.counter("capture_forgotten", "What retention has forgotten, by kind", ("kind",))


class CleanupService:
    """The loop `cleanup_service`.

    Args:
        store: The rows.
        files: The files.
        keep_days: Age at which photos and events are forgotten.
        keep_bytes: Bytes of photos that are kept; all where None.
        interval_seconds: How often it looks.
    """

    def __init__(
        self,
        store: ForgettingStore,
        files: PhotoFiles,
        *,
        keep_days: float,
        keep_bytes: int | None,
        interval_seconds: float,
    ) -> None:
        self._store = store
        self._files = files
        self._age = keep_days * _SECONDS_A_DAY
        self._keep_bytes = keep_bytes
        self._looked = _FIRST
        self.loop = Loop("cleanup_service", self.run, interval_seconds)

    async def run(self) -> bool:
        """Forget what is old or too much, some at a time.

        Returns:
            Whether more waits.
        """
        events = await self._store.forget_events(self._age, _BATCH)
        due, hidden = 0, 0
        # Files of a drive that is away are not gone: without their rows they would be new photos when it is back.
        if not await asyncio.to_thread(self._files.are_away):
            due, hidden = await self._forget_due(), await self._forget_hidden()
        batches = await self._store.forget_batches(_BATCH)
        for kind, count in (("events", events), ("photos", due), ("batches", batches)):
            _FORGOTTEN.labels(kind).inc(count)
        if events or due:
            _log.info("capture_forgotten", events=events, photos=due, batches=batches)
        return max(events, due, hidden, batches) >= _BATCH

    async def _forget_due(self) -> int:
        due = list(await self._store.old_photos(self._age, _BATCH))
        if self._keep_bytes is not None and len(due) < _BATCH:
            known = {one.photo_id for one in due}
            excess = await self._store.excess_photos(self._keep_bytes, _BATCH)
            due += [one for one in excess if one.photo_id not in known]
        await self._forget(due, self._files.remove)
        return len(due)

    async def _forget_hidden(self) -> int:
        hidden = await self._store.forgotten_photos(self._looked, _BATCH)
        self._looked = hidden[-1].photo_id if len(hidden) == _BATCH else _FIRST
        await self._forget(hidden, self._files.is_gone, gone_alone=True)
        return len(hidden)

    async def _forget(
        self, photos: Sequence[KeptFile], is_gone: Callable[[KeptFile], bool], *, gone_alone: bool = False
    ) -> None:
        if not photos:
            return
        answers = await asyncio.to_thread(lambda: [is_gone(one) for one in photos])
        gone = [one.photo_id for one, answer in zip(photos, answers, strict=True) if answer]
        there = [one.photo_id for one, answer in zip(photos, answers, strict=True) if not answer]
        await self._store.forget_photos(gone, () if gone_alone else there)
