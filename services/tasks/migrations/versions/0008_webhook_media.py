"""A delivery keeps the paths of its task's results: their addresses are signed when it is sent."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE webhook_deliveries ADD COLUMN media jsonb")


def downgrade() -> None:
    op.execute("ALTER TABLE webhook_deliveries DROP COLUMN media")
