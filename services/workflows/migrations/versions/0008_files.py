"""Workflows own the files of their definitions; what no workflow owns is swept."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "CREATE TABLE file_sweeps (workflow_id uuid PRIMARY KEY, tenant text NOT NULL, "
        "due_at timestamptz NOT NULL DEFAULT now())"
    )
    op.execute("CREATE INDEX file_sweeps_due ON file_sweeps (due_at)")


def downgrade() -> None:
    op.execute("DROP TABLE file_sweeps")
