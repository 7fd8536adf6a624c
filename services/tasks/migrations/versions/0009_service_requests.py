"""Requests to providers that may cost money: each written down before it is sent."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE service_requests (
        id uuid PRIMARY KEY,
        task_id uuid NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
        tenant text NOT NULL,
        -- The attempt that has sent it, and the one that noted it last, with its session.
        attempt integer NOT NULL CHECK (attempt >= 1),
        last_attempt integer NOT NULL,
        session uuid NOT NULL,
        provider_type text NOT NULL,
        target text NOT NULL,
        operation text NOT NULL,
        state text NOT NULL CHECK (state IN ('SENDING', 'ACCEPTED', 'DONE', 'FAILED', 'UNKNOWN')),
        service_task_id text,
        -- A serialized Struct.
        resume bytea,
        http_status integer,
        category text CHECK (category IN ('VALIDATION', 'PROVIDER', 'RATE_LIMIT', 'TIMEOUT', 'RESOURCE',
            'CONTENT_POLICY', 'CANCELLED', 'INTERNAL')),
        message text,
        effect text CHECK (effect IN ('IGNORED', 'SUCCESS', 'FAILURE', 'FATAL')),
        retry_after double precision,
        sent_at timestamptz NOT NULL,
        ended_at timestamptz,
        cost double precision CHECK (cost >= 0),
        currency text,
        CONSTRAINT ended_unless_open CHECK ((state IN ('SENDING', 'ACCEPTED')) = (ended_at IS NULL))
    ) WITH (fillfactor = 70)
    """,
    "CREATE INDEX service_requests_of_task ON service_requests (task_id, sent_at)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE service_requests")
