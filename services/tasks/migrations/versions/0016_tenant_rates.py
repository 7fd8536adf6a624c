"""How fast tenants may call providers: a bucket for each tenant whose calls a rate bounds."""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE provider_tenants (
            provider text NOT NULL,
            tenant text NOT NULL,
            -- What the bucket held at `filled_at`.
            tokens double precision NOT NULL,
            filled_at timestamptz NOT NULL,
            PRIMARY KEY (provider, tenant)
        ) WITH (fillfactor = 50)
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE provider_tenants")
