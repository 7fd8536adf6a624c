"""Cameras that somebody has removed because their folder is gone; the row stays while photos or events name it."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE cameras ADD COLUMN removed_at timestamptz")


def downgrade() -> None:
    op.execute("ALTER TABLE cameras DROP COLUMN removed_at")
