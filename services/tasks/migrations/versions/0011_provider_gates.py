"""Gates before providers: breakers, buckets, and what their calls have used."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE provider_gates (
        provider text NOT NULL CHECK (provider <> ''),
        -- What the provider counts by, an application or a model; empty for the provider as a whole.
        key text NOT NULL,
        state text NOT NULL DEFAULT 'closed' CHECK (state IN ('closed', 'open', 'half_open')),
        failure_count integer NOT NULL DEFAULT 0 CHECK (failure_count >= 0),
        success_count integer NOT NULL DEFAULT 0 CHECK (success_count >= 0),
        opened_at timestamptz,
        last_failure_at timestamptz,
        -- Attempts admitted since it was half open that have told nothing yet, each as `task/attempt`.
        trials text[] NOT NULL DEFAULT '{}',
        -- What the bucket held at `filled_at`; null for a full one.
        tokens double precision,
        filled_at timestamptz,
        blocked_until timestamptz,
        total_calls bigint NOT NULL DEFAULT 0,
        rejected_calls bigint NOT NULL DEFAULT 0,
        -- Since when work waits before it; null while it admits all that comes.
        waiting_since timestamptz,
        PRIMARY KEY (provider, key),
        CHECK ((state = 'closed') = (opened_at IS NULL)),
        CHECK (state = 'half_open' OR trials = '{}')
    ) WITH (fillfactor = 50)
    """,
    # What requests that have ended have used, by the day of their end in UTC. Their numbers stand in the row of the
    # currency of their cost; it is empty where the provider told none.
    """
    CREATE TABLE provider_usage (
        tenant text NOT NULL,
        provider_type text NOT NULL,
        day date NOT NULL,
        currency text NOT NULL,
        calls bigint NOT NULL,
        failed_calls bigint NOT NULL,
        seconds double precision NOT NULL,
        cost double precision NOT NULL,
        PRIMARY KEY (tenant, provider_type, day, currency)
    ) WITH (fillfactor = 50)
    """,
    # Attempts under way at providers, counted where calls at once are limited.
    """
    CREATE INDEX tasks_calling ON tasks (provider_type, lane, tenant)
        WHERE lease_session IS NOT NULL AND provider_type <> 'LOCAL'
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP INDEX tasks_calling")
    op.execute("DROP TABLE provider_usage")
    op.execute("DROP TABLE provider_gates")
