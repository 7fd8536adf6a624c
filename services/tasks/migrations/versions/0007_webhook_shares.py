"""Due deliveries are found by tenant and target, so that a tenant which has its share is passed over at once."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "CREATE INDEX webhook_deliveries_due_of_tenant ON webhook_deliveries (tenant, target, due_at) "
        "WHERE status = 'PENDING'"
    )
    op.execute("DROP INDEX webhook_deliveries_due")


def downgrade() -> None:
    op.execute("CREATE INDEX webhook_deliveries_due ON webhook_deliveries (target, due_at) WHERE status = 'PENDING'")
    op.execute("DROP INDEX webhook_deliveries_due_of_tenant")
