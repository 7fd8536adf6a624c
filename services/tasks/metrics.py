"""What several modules of the service count."""

from __future__ import annotations

from meshkit import metrics

COMMIT_MEMBERS = metrics.histogram(
    "tasks_group_commit_members", "Requests that shared a transaction", ("kind",), (1, 2, 4, 8, 16, 32, 64, 128)
)
