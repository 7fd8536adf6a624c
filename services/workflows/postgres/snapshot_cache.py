"""Workflows as this process committed them last, so that the next decision need not read their rows again.

Before a snapshot is used: the caller holds the lock of the workflow's row and has read its version and `updated_at`
under that lock. Both must equal the snapshot's: every decision changes both. The version alone is not enough, because a
crash of the database may undo a commit, and another replica may then give the same version away again.

After: the snapshot is the workflow's committed state, but for notes on steps that are written without the workflow's
lock (`accept`, `due_dispatches`, `due_checks`, `due_cancels`). They change neither version nor `updated_at`: a step
that is kept as DISPATCHING may be RUNNING, and may have been sent or asked for again. The engine decides the same for
both, and `writes` names only the columns that changed, so that such a note is not overwritten.

A snapshot that was passed over is not wrong, only unused: the caller then reads the rows, in a statement of its own
after the lock.

Who may call: `keep` after the commit alone, with what was committed; `find` under the lock; `forget` at any time, and
after any failure that leaves open what was committed. The cache belongs to one event loop and takes no locks itself.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime
from uuid import UUID

from services.workflows.domain import ENDED
from services.workflows.store import WorkflowSnapshot

_MAX_BYTES = 32 * 1024 * 1024
# A record and its small members; definitions, results and items come on top.
_STEP_BYTES = 2048


class SnapshotCache:
    """The workflows that were committed last, up to a number of bytes.

    Args:
        max_bytes: How much to keep.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[UUID, tuple[WorkflowSnapshot, int]] = OrderedDict()

    def keep(self, whole: WorkflowSnapshot) -> None:
        """Keep a workflow as it was committed; drop it where it ended."""
        self.forget(whole.workflow.id)
        if whole.workflow.status in ENDED:
            return
        size = _size(whole)
        self._kept[whole.workflow.id] = whole, size
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, (_, freed) = self._kept.popitem(last=False)
            self._bytes -= freed

    def forget(self, workflow_id: UUID) -> None:
        """Drop a workflow; without one nothing happens."""
        _, size = self._kept.pop(workflow_id, (None, 0))
        self._bytes -= size

    def find(self, workflow_id: UUID, version: int, updated_at: datetime) -> WorkflowSnapshot | None:
        """Return the workflow if it is kept with this version and this time of its last change."""
        whole, _ = self._kept.get(workflow_id, (None, 0))
        if whole is None or (whole.workflow.version, whole.workflow.updated_at) != (version, updated_at):
            return None
        return whole


def _size(whole: WorkflowSnapshot) -> int:
    variable = sum(len(step.definition) + len(step.result or b"") + len(step.item or b"") for step in whole.steps)
    return _STEP_BYTES * (len(whole.steps) + 1) + len(whole.workflow.config) + variable
