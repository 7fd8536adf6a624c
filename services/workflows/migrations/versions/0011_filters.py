"""Have an index serve each list of workflows by one filter, of a tenant and of all tenants."""

from alembic import op

from meshkit.migration import beside_writers

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_NEWEST = "created_at DESC, id DESC"
_INDEXES = {
    f"workflows_by_{name}{of_all}": (
        f"{before}{name}, {_NEWEST}",
        # Most installations name no zone: their workflows need no entry there.
        "NOT is_deleted" + (" AND origin_zone IS NOT NULL" if name == "origin_zone" else ""),
    )
    for name in ("status", "origin_instance", "origin_zone")
    for before, of_all in (("tenant, ", ""), ("", "_of_all"))
}


def upgrade() -> None:
    with beside_writers():
        for name, (columns, condition) in _INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")  # what a run left that was stopped
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON workflows ({columns}) WHERE {condition}")


def downgrade() -> None:
    for name in _INDEXES:
        op.execute(f"DROP INDEX {name}")
