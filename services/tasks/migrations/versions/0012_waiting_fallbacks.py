"""Waiting tasks whose fallback can take over are found by lane and by how long they wait."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "CREATE INDEX tasks_falling_back ON tasks (lane, updated_at) "
        "WHERE status = 'PENDING' AND fallback = 'AVAILABLE'"
    )


def downgrade() -> None:
    op.execute("DROP INDEX tasks_falling_back")
