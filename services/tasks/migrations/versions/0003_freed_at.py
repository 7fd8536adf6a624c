"""Drops `attempts.freed_at`, which nothing read: a worker asks for no more than it has room for."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Drop the column."""
    op.execute("ALTER TABLE attempts DROP COLUMN freed_at")


def downgrade() -> None:
    """Add the column again, empty."""
    op.execute("ALTER TABLE attempts ADD COLUMN freed_at timestamptz")
