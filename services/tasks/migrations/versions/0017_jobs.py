"""Jobs of other services say what they are expected to take: it differs more than that of tasks of one type."""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE tasks ADD COLUMN expected_seconds double precision CHECK (expected_seconds > 0)")


def downgrade() -> None:
    op.execute("ALTER TABLE tasks DROP COLUMN expected_seconds")
