"""How long attempts take a slot, by lane and model, measured where they end."""

from __future__ import annotations

from collections.abc import Sequence

from services.tasks.api.creation import MODEL_KEY
from services.tasks.catalog import LOCAL
from services.tasks.domain import TaskRecord
from services.tasks.scaling.store import ScalingStore, WorkTime


class WorkTimes:
    """Collects the times of this replica until they are written.

    Args:
        store: The database.
    """

    def __init__(self, store: ScalingStore) -> None:
        self._store = store
        self._sums: dict[tuple[str, str], tuple[float, int]] = {}

    def completed(self, record: TaskRecord, device_seconds: float, slots: int) -> None:
        """Note an attempt that has completed.

        Args:
            record: Its task.
            device_seconds: How long the device worked for it.
            slots: Slots of the worker, which share the device.
        """
        if record.provider_type == LOCAL and device_seconds > 0:
            # A job may wait at the worker for its device; of the device itself it took its share.
            seconds = device_seconds * slots
        elif record.leased_at is not None and record.completed_at is not None:
            seconds = max(0.0, (record.completed_at - record.leased_at).total_seconds())
        else:
            return
        for model in {"", model_of(record.warm_keys)}:
            total, count = self._sums.get((record.lane, model), (0.0, 0))
            self._sums[record.lane, model] = total + seconds, count + 1

    async def flush(self) -> None:
        """Write what was collected."""
        sums, self._sums = self._sums, {}
        if not sums:
            return
        try:
            await self._store.add_times(
                [WorkTime(lane, model, total / count, count) for (lane, model), (total, count) in sums.items()]
            )
        except BaseException:
            for key, (total, count) in sums.items():
                known, number = self._sums.get(key, (0.0, 0))
                self._sums[key] = known + total, number + count
            raise


def model_of(warm_keys: Sequence[str]) -> str:
    """Return the model that a task asks for; empty where it names none."""
    return next((key.removeprefix(MODEL_KEY) for key in warm_keys if key.startswith(MODEL_KEY)), "")
