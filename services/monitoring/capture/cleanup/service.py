"""What is forgotten, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from uuid import UUID

from meshkit import metrics
from meshkit.logging import get_logger
from meshkit.loops import Loop
from services.monitoring.capture.cleanup.files import FileFate, PhotoFiles
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
        # Photos whose files could not be deleted in this cleanup, why, and what has been told of that.
        self._not_deleted: set[UUID] = set()
        self._causes: set[str] = set()
        self._told: frozenset[str] = frozenset()
        self.loop = Loop("cleanup_service", self.run, interval_seconds)

    @property
    def stuck(self) -> bool:
        """Whether files could not be deleted when that was tried last."""
        return bool(self._told)

    async def run(self) -> bool:
        """Forget what is old or too much, some at a time.

        Returns:
            Whether more waits.
        """
        events = await self._store.forget_events(self._age, _BATCH)
        due, forgotten, hidden = 0, 0, 0
        # Files of a drive that is away are not gone: without their rows they would be new photos when it is back.
        if not await asyncio.to_thread(self._files.are_away):
            due, forgotten = await self._forget_due()
            hidden = await self._forget_hidden()
        batches = await self._store.forget_batches(_BATCH)
        await self._store.forget_cameras()
        for kind, count in (("events", events), ("photos", forgotten), ("batches", batches)):
            _FORGOTTEN.labels(kind).inc(count)
        if events or forgotten:
            _log.info("capture_forgotten", events=events, photos=forgotten, batches=batches)
        more = max(events, due, hidden, batches) >= _BATCH
        if not more:
            self._tell()
        return more

    async def _forget_due(self) -> tuple[int, int]:
        """Forget photos that are due; return how many were, and how many are forgotten."""
        due = list(await self._store.old_photos(self._age, _BATCH, self._not_deleted))
        if self._keep_bytes is not None and len(due) < _BATCH:
            known = {one.photo_id for one in due}
            excess = await self._store.excess_photos(self._keep_bytes, _BATCH, self._not_deleted)
            due += [one for one in excess if one.photo_id not in known]
        fates = await self._remove(due)
        gone, there = _of(fates, FileFate.GONE), _of(fates, FileFate.STAYS)
        await self._store.forget_photos(gone, there)
        return len(due), len(gone) + len(there)

    async def _forget_hidden(self) -> int:
        hidden = await self._store.forgotten_photos(self._looked, _BATCH)
        self._looked = hidden[-1].photo_id if len(hidden) == _BATCH else _FIRST
        await self._store.forget_photos(_of(await self._remove(hidden), FileFate.GONE), ())
        return len(hidden)

    async def _remove(self, photos: Sequence[KeptFile]) -> Mapping[UUID, FileFate]:
        """Delete files; those that could not be are left until the next time, with their rows."""
        found = await asyncio.to_thread(lambda: [(one.photo_id, *self._files.remove(one)) for one in photos])
        for photo_id, fate, cause in found:
            if fate is FileFate.NOT_DELETED:
                self._not_deleted.add(photo_id)
                self._causes.add(cause)
        return {photo_id: fate for photo_id, fate, _ in found}

    def _tell(self) -> None:
        """Tell, at the end of a cleanup, what could not be deleted: once, until that changes."""
        if self._causes - self._told:
            _log.warning("photos_not_deleted", count=len(self._not_deleted), causes=sorted(self._causes))
        elif self._told and not self._causes:
            _log.info("photos_deleted_again")
        self._told, self._causes = frozenset(self._causes), set()
        self._not_deleted.clear()


def _of(fates: Mapping[UUID, FileFate], wanted: FileFate) -> list[UUID]:
    return [photo_id for photo_id, fate in fates.items() if fate is wanted]
