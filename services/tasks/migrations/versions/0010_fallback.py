"""Whether a task has a fallback that can take over, or that has: it never goes back."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE tasks ADD COLUMN fallback text CHECK (fallback IN ('AVAILABLE', 'TAKEN'))")


def downgrade() -> None:
    op.execute("ALTER TABLE tasks DROP COLUMN fallback")
