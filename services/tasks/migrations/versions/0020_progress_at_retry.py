"""How far a job had got when an attempt at it last cost a retry, so that only those count since it last got further."""

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE tasks ADD COLUMN progress_at_retry double precision NOT NULL DEFAULT 0")


def downgrade() -> None:
    op.execute("ALTER TABLE tasks DROP COLUMN progress_at_retry")
