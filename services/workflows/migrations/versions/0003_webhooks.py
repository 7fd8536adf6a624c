"""Which end of a workflow its webhook was told of."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Written by the loop that tells alone, so no part of the record. A resumed workflow ends, and tells, again.
    op.execute("ALTER TABLE workflows ADD COLUMN told_end timestamptz")
    op.execute(
        "CREATE INDEX workflows_to_tell ON workflows (completed_at) WHERE webhook_url IS NOT NULL "
        "AND completed_at IS NOT NULL AND told_end IS DISTINCT FROM completed_at"
    )


def downgrade() -> None:
    op.execute("DROP INDEX workflows_to_tell")
    op.execute("ALTER TABLE workflows DROP COLUMN told_end")
