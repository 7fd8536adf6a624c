"""Run what no caller asks for: jobs not made, ends not heard of, webhooks, objects to delete, deletion of old rows."""

from __future__ import annotations

from uuid import UUID

from meshkit import metrics
from meshkit.errors import ErrorKind, MeshError
from meshkit.logging import get_logger
from meshkit.loops import Loop
from meshkit.objects import ObjectStore
from services.training.config import TrainingSettings
from services.training.ends import TrainingEnds
from services.training.job_calls import JobCalls
from services.training.service import TrainingsService
from services.training.store import TrainingStore

_log = get_logger(__name__)

_BATCH = 50
_SECONDS_A_DAY = 86_400.0
# What is handed in again would be refused again.
_FINAL = (ErrorKind.INVALID, ErrorKind.FORBIDDEN, ErrorKind.CONFLICT)
_SWEPT = metrics.counter("trainings_objects_swept", "Objects of trainings deleted that nothing names")


class TrainingMaintenance:
    """The bodies of the loops; a test may call each.

    Args:
        store: The database.
        trainings: Makes jobs.
        jobs: The tasks service.
        ends: What follows the end of a job.
        objects: The object store.
        settings: Intervals and ages.
    """

    def __init__(
        self,
        store: TrainingStore,
        *,
        trainings: TrainingsService,
        jobs: JobCalls,
        ends: TrainingEnds,
        objects: ObjectStore,
        settings: TrainingSettings,
    ) -> None:
        self._store = store
        self._trainings = trainings
        self._jobs = jobs
        self._ends = ends
        self._objects = objects
        self._settings = settings
        self._asked: UUID | None = None

    def loops(self) -> list[Loop]:
        """All loops of a replica."""
        interval = self._settings.reconcile_interval_seconds
        sweeps = max(0.5, min(5.0, self._settings.training_sweep_delay_seconds / 4))
        return [
            Loop("trainings-jobs", self.make_jobs, interval, jitter=0.2),
            Loop("trainings-reconcile", self.reconcile, interval, jitter=0.2),
            Loop("trainings-webhooks", self.hand_over, min(1.0, interval)),
            Loop("trainings-objects", self.sweep, sweeps),
            Loop("trainings-age", self.age_out, 3600.0),
            Loop("trainings-maintenance", self._store.purge_keys, 600.0),
        ]

    async def make_jobs(self) -> None:
        """Queue the jobs of trainings whose create could not."""
        for record in await self._store.unmade(_BATCH):
            await self._trainings.make_job(record)

    async def reconcile(self) -> bool:
        """Ask for the jobs of trainings that have not ended, some at a time, and end those that have.

        Returns:
            Whether more wait.
        """
        ids = await self._store.open_jobs(self._asked, _BATCH)
        self._asked = ids[-1] if len(ids) == _BATCH else None
        if not ids:
            return False
        jobs = await self._jobs.find(ids)
        for training_id in ids:
            if training_id in jobs:
                await self._ends.follow(training_id, jobs[training_id])
            else:
                # The row of the tasks service was lost with its database: the job is queued again.
                record = await self._store.get(training_id)
                if record is not None and not record.has_ended:
                    await self._trainings.make_job(record)
        return self._asked is not None

    async def hand_over(self) -> bool:
        """Hand the webhooks of trainings in.

        Returns:
            Whether more wait.
        """
        waiting = await self._store.handovers(_BATCH)
        for one in waiting:
            try:
                await self._jobs.enqueue_webhook(one)
            except MeshError as error:
                if error.kind not in _FINAL:
                    raise
                _log.warning("webhook_refused", training_id=str(one.training_id), reason=error.reason)
            await self._store.forget_handover(one.event_id)
        return len(waiting) == _BATCH

    async def sweep(self) -> bool:
        """Delete objects that nothing names any more, and those of trainings that never came to be.

        Returns:
            Whether more wait.
        """
        due = await self._store.due_sweeps(_BATCH)
        for one in due:
            if not one.is_intent or await self._store.get(one.training_id) is None:
                if one.path.endswith("/"):
                    _SWEPT.inc(len(await self._objects.delete_prefix(one.tenant, one.path)))
                else:
                    await self._objects.delete(one.tenant, one.path)
                    _SWEPT.inc()
            await self._store.forget_sweep(one)
        return len(due) == _BATCH

    async def age_out(self) -> bool:
        """Have the objects of trainings deleted that ended long ago.

        Returns:
            Whether more wait.
        """
        age = self._settings.training_keep_days * _SECONDS_A_DAY
        return await self._store.age_out(age, _BATCH) == _BATCH
