"""Keep the trace of a webhook whose entity is no task of this service: that of a workflow."""

from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE webhook_deliveries ADD COLUMN traceparent text NOT NULL DEFAULT ''")


def downgrade() -> None:
    op.execute("ALTER TABLE webhook_deliveries DROP COLUMN traceparent")
