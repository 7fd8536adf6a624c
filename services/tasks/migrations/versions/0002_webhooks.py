"""Webhooks: deliveries, their attempts, signing secrets, addresses that answered 410."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE webhook_deliveries (
        id uuid PRIMARY KEY,
        tenant text NOT NULL,
        entity_id uuid NOT NULL,
        entity_version bigint NOT NULL,
        event_type text NOT NULL,
        url text NOT NULL,
        target text NOT NULL,
        body bytea NOT NULL,
        status text NOT NULL CHECK (status IN ('PENDING', 'DELIVERED', 'FAILED')),
        failure text CHECK (failure IN ('EXHAUSTED', 'GONE', 'REFUSED')),
        -- Attempts since it was handed in or sent again by hand, and all of them.
        tries integer NOT NULL DEFAULT 0,
        attempt_count integer NOT NULL DEFAULT 0,
        last_status_code integer,
        last_error text,
        created_at timestamptz NOT NULL,
        -- When it may be claimed; of a claimed one, when its lease ends.
        due_at timestamptz,
        lease uuid,
        ended_at timestamptz,
        CONSTRAINT due_while_pending CHECK ((status = 'PENDING') = (due_at IS NOT NULL)),
        CONSTRAINT ended_unless_pending CHECK ((status = 'PENDING') = (ended_at IS NULL)),
        CONSTRAINT failed_for_a_reason CHECK ((status = 'FAILED') = (failure IS NOT NULL)),
        CONSTRAINT leased_while_pending CHECK (lease IS NULL OR status = 'PENDING')
    ) WITH (fillfactor = 80)
    """,
    "CREATE INDEX webhook_deliveries_due ON webhook_deliveries (target, due_at) WHERE status = 'PENDING'",
    """
    CREATE INDEX webhook_deliveries_order ON webhook_deliveries (entity_id, entity_version, id)
        WHERE status = 'PENDING'
    """,
    "CREATE INDEX webhook_deliveries_newest ON webhook_deliveries (tenant, created_at DESC, id DESC)",
    "CREATE INDEX webhook_deliveries_newest_of_all ON webhook_deliveries (created_at DESC, id DESC)",
    "CREATE INDEX webhook_deliveries_of_entity ON webhook_deliveries (entity_id, created_at DESC)",
    "CREATE INDEX webhook_deliveries_ended ON webhook_deliveries (ended_at) WHERE ended_at IS NOT NULL",
    """
    CREATE TABLE webhook_attempts (
        delivery_id uuid NOT NULL REFERENCES webhook_deliveries (id) ON DELETE CASCADE,
        number integer NOT NULL,
        started_at timestamptz NOT NULL,
        duration_seconds double precision NOT NULL,
        status_code integer,
        error text,
        PRIMARY KEY (delivery_id, number)
    )
    """,
    """
    CREATE TABLE webhook_secrets (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        tenant text NOT NULL,
        key text NOT NULL,
        created_at timestamptz NOT NULL,
        -- A former secret signs until then; the present one has no end.
        expires_at timestamptz
    )
    """,
    "CREATE UNIQUE INDEX webhook_secrets_present ON webhook_secrets (tenant) WHERE expires_at IS NULL",
    "CREATE INDEX webhook_secrets_former ON webhook_secrets (tenant, expires_at) WHERE expires_at IS NOT NULL",
    """
    CREATE TABLE webhook_disabled (
        tenant text NOT NULL,
        url text NOT NULL,
        disabled_at timestamptz NOT NULL,
        PRIMARY KEY (tenant, url)
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    for table in ["webhook_disabled", "webhook_secrets", "webhook_attempts", "webhook_deliveries"]:
        op.execute(f"DROP TABLE IF EXISTS {table}")
