"""How long what has ended is kept, by tenant."""

from alembic import op

from meshkit.migration import beside_writers

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with beside_writers():
        # Identifiers that were given are themselves forgotten, long after.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS task_ids_age")
        op.execute("CREATE INDEX CONCURRENTLY task_ids_age ON task_ids (deleted_at)")
    op.execute(
        """
        CREATE TABLE retention_rules (
            kind text NOT NULL CHECK (kind IN ('TASKS', 'WORKFLOWS', 'TRAININGS', 'DELIVERIES', 'USAGE')),
            -- `*` for all that have no rule of their own.
            tenant text NOT NULL CHECK (tenant <> ''),
            -- 0 for ever.
            days integer NOT NULL CHECK (days BETWEEN 0 AND 36500),
            set_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (kind, tenant)
        )
        """
    )
    # Old deliveries are found by tenant.
    op.execute("DROP INDEX webhook_deliveries_ended")


def downgrade() -> None:
    op.execute("CREATE INDEX webhook_deliveries_ended ON webhook_deliveries (ended_at) WHERE ended_at IS NOT NULL")
    op.execute("DROP INDEX task_ids_age")
    op.execute("DROP TABLE retention_rules")
