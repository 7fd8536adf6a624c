"""Tasks whose files something names that has not ended: they are kept for a while, however old."""

from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE task_holds (
            task_id uuid PRIMARY KEY,
            held_until timestamptz NOT NULL
        )
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE task_holds")
