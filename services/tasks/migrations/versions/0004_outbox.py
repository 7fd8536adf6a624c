"""Events leave the outbox when they are published, in place of being marked and deleted a day later."""

from alembic import op

from meshkit.outbox import DROP_PUBLISHED

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(DROP_PUBLISHED)


def downgrade() -> None:
    op.execute("ALTER TABLE outbox ADD COLUMN IF NOT EXISTS published_at timestamptz")
    op.execute("CREATE INDEX IF NOT EXISTS outbox_unpublished ON outbox (id) WHERE published_at IS NULL")
    op.execute("CREATE INDEX IF NOT EXISTS outbox_published ON outbox (published_at) WHERE published_at IS NOT NULL")
