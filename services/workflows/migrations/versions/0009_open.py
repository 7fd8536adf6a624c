"""Workflows that have not ended are found without the others."""

from alembic import op

from meshkit.migration import beside_writers

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with beside_writers():
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS workflows_open")
        op.execute("CREATE INDEX CONCURRENTLY workflows_open ON workflows (id) WHERE completed_at IS NULL")


def downgrade() -> None:
    op.execute("DROP INDEX workflows_open")
