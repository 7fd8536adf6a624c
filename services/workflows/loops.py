"""Run what no caller asks for: steps without notices, tasks of ended workflows, webhooks, counters, old rows."""

from __future__ import annotations

from meshkit.bus import Bus
from meshkit.loops import Loop
from services.workflows.config import WorkflowsSettings
from services.workflows.executor import WorkflowExecutor
from services.workflows.files import StepFiles
from services.workflows.store import WorkflowStore

_SWEEPS = 50


class WorkflowMaintenance:
    """The bodies of the loops; a test may call each.

    Args:
        store: The database.
        executor: Moves workflows.
        bus: Its connection tells whether events arrive.
        settings: Intervals and ages.
        files: The files of definitions; None where there is no object store.
    """

    def __init__(
        self,
        store: WorkflowStore,
        executor: WorkflowExecutor,
        bus: Bus,
        settings: WorkflowsSettings,
        files: StepFiles | None,
    ) -> None:
        self._store = store
        self._files = files
        self._bus = bus
        self._executor = executor
        self._settings = settings

    def loops(self) -> list[Loop]:
        """All loops of a replica."""
        interval = self._settings.reconcile_interval_seconds
        return [
            # Well before such a step would be sent again.
            Loop("workflows-made", self._executor.note_made, min(1.0, self._settings.resend_seconds / 4)),
            Loop("workflows-reconcile", self.reconcile, interval, jitter=0.2),
            Loop("workflows-webhooks", self._executor.tell_ends, min(1.0, interval)),
            Loop("workflows-files", self.sweep_files, max(1.0, min(30.0, self._settings.file_sweep_delay_seconds / 4))),
            Loop("workflows-counters", self._store.fold, 5.0),
            Loop("workflows-maintenance", self._store.purge, 600.0),
        ]

    async def sweep_files(self) -> bool:
        """Delete the files of definitions that did not become workflows, and of those that were cleaned up.

        Returns:
            Whether more wait.
        """
        if self._files is None:
            return False
        due = await self._store.due_files(self._settings.file_sweep_delay_seconds, _SWEEPS)
        for sweep in due:
            whole = await self._store.get(sweep.workflow_id)
            if whole is None or whole.workflow.is_deleted:
                await self._files.discard(sweep.tenant, sweep.workflow_id)
            await self._store.forget_files(sweep)
        return len(due) == _SWEEPS

    async def reconcile(self) -> bool:
        """Send again what was left, ask for steps without events, cancel what shall not run or takes too long.

        Returns:
            Whether more waits.
        """
        settings = self._settings
        resent = await self._executor.resend(settings.resend_seconds)
        checked = await self._executor.check(settings.check_seconds, connected=self._bus.connected)
        await self._executor.expire()
        stopped = await self._executor.stop_tasks(settings.resend_seconds)
        return resent or checked or stopped
