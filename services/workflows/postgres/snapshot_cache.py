"""Rows of workflows as this process wrote them last, so that the next decision need not read them again.

What is kept counts only where the workflow's row, read under its lock, still has the version and the moment of that
write: whoever decides changes both. The moment tells a version apart from one that a crash of the database undid and
another replica gave away again. Notes made without the lock change neither: a step that is kept as DISPATCHING may be
RUNNING by now, and may have been sent or asked for again since. Decisions upon ends are the same for both, and what is
written of a step names the columns that changed.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime
from uuid import UUID

from services.workflows.domain import ENDED
from services.workflows.store import WorkflowSnapshot

_MAX_BYTES = 32 * 1024 * 1024
# A record and its small members; what callers and tasks give comes on top.
_STEP_BYTES = 2048


class SnapshotCache:
    """Workflows that were written last, up to a number of bytes.

    Args:
        max_bytes: How much to keep.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[UUID, tuple[WorkflowSnapshot, int]] = OrderedDict()

    def keep(self, whole: WorkflowSnapshot) -> None:
        """Keep a workflow as it was committed; one that ended is forgotten."""
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
        """Keep a workflow no longer."""
        _, size = self._kept.pop(workflow_id, (None, 0))
        self._bytes -= size

    def find(self, workflow_id: UUID, version: int, updated_at: datetime) -> WorkflowSnapshot | None:
        """Return a workflow whose row has this version and moment, if it is kept."""
        whole, _ = self._kept.get(workflow_id, (None, 0))
        if whole is None or (whole.workflow.version, whole.workflow.updated_at) != (version, updated_at):
            return None
        return whole


def _size(whole: WorkflowSnapshot) -> int:
    given = sum(len(step.definition) + len(step.result or b"") + len(step.item or b"") for step in whole.steps)
    return _STEP_BYTES * (len(whole.steps) + 1) + len(whole.workflow.config) + given
