"""Index by filter only tasks that ended: in its life a task is entered into these five indexes five times, not fifteen.

Those that have not ended stand in one index, in the order of lists: with the filters' columns behind the order's, the
rows that do not match are passed over without being read.
"""

from alembic import op

from meshkit.migration import beside_writers

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

_FILTERS = ("status", "task_type", "provider_type", "origin_instance", "origin_zone")
_LISTED = "kind = 'TASK' AND NOT is_deleted"
_BY_FILTER = {f"tasks_by_{name}": (f"{name}, tenant, created_at DESC, id DESC", _LISTED) for name in _FILTERS}
# Most installations name no zone: their tasks need no entry there.
_ENDED = {
    f"tasks_ended_by_{name}": (
        f"{name}, tenant, created_at DESC, id DESC",
        f"{_LISTED} AND completed_at IS NOT NULL" + (" AND origin_zone IS NOT NULL" if name == "origin_zone" else ""),
    )
    for name in _FILTERS
}
_UNENDED = {
    "tasks_unended": (
        f"created_at DESC, id DESC, tenant, {', '.join(_FILTERS)}",
        f"{_LISTED} AND completed_at IS NULL",
    )
}


def upgrade() -> None:
    _replace(_BY_FILTER, _ENDED | _UNENDED)


def downgrade() -> None:
    _replace(_ENDED | _UNENDED, _BY_FILTER)


def _replace(old: dict[str, tuple[str, str]], new: dict[str, tuple[str, str]]) -> None:
    with beside_writers():
        for name, (columns, condition) in new.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")  # what a run left that was stopped
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON tasks ({columns}) WHERE {condition}")
        for name in old:
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
