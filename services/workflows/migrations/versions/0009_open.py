"""Workflows that have not ended are found without the others."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE INDEX workflows_open ON workflows (id) WHERE completed_at IS NULL")


def downgrade() -> None:
    op.execute("DROP INDEX workflows_open")
