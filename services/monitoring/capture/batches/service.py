"""Gathers photos into batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

from atelier.monitoring.v1 import health_pb2

from meshkit.logging import get_logger
from meshkit.loops import Loop
from services.monitoring.capture.batches.domain import BatchLimits
from services.monitoring.capture.batches.store import BatchStore

_log = get_logger(__name__)

_INTERVAL_SECONDS = 1.0


class BatchAggregator:
    """Gathers photos into batches; safe with several replicas.

    Args:
        store: The rows.
        window_seconds: How long after its first photo a batch takes further ones.
        idle_seconds: How long after its last photo a batch takes further ones.
        on_closed: Called when a batch is complete.
    """

    def __init__(
        self, store: BatchStore, *, window_seconds: int, idle_seconds: int, on_closed: Callable[[], None]
    ) -> None:
        self._store = store
        self._window_seconds = window_seconds
        self._idle_seconds = idle_seconds
        self._limits = BatchLimits(timedelta(seconds=window_seconds), timedelta(seconds=idle_seconds))
        self._on_closed = on_closed
        self.loop = Loop("batch_aggregator", self.run_once, _INTERVAL_SECONDS, wake=asyncio.Event())

    async def run_once(self) -> bool:
        """Gather the photos of all cameras; body of a loop.

        Returns:
            Whether more wait.
        """
        more = False
        for camera_id in await self._store.to_gather():
            closed, waits = await self._store.gather(camera_id, self._limits)
            more |= waits
            if closed:
                _log.info("batches_closed", camera=camera_id, count=closed)
                self._on_closed()
        return more

    async def state(self) -> health_pb2.BatchAggregatorStatus:
        """Return the batches that take further photos."""
        batches, now = await self._store.open_batches()
        status = health_pb2.BatchAggregatorStatus(
            active_batches=len(batches),
            batch_window_seconds=self._window_seconds,
            idle_timeout_seconds=self._idle_seconds,
        )
        for one in batches:
            status.batches.add(
                batch_id=str(one.id),
                camera_id=one.camera_id,
                detection_count=one.detection_count,
                started_at=one.started_at.timestamp(),
                age_seconds=max(0.0, (now - one.started_at).total_seconds()),
                last_activity_seconds=max(0.0, (now - one.last_activity_at).total_seconds()),
            )
        return status
