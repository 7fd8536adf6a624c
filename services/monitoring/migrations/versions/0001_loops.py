"""What operators want of background loops, and the history of these."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE loops (
            name text PRIMARY KEY CHECK (name ~ '^[a-zA-Z][a-zA-Z0-9_]*$'),
            -- Service that has it; empty until one has reported it.
            role text NOT NULL,
            stopped boolean NOT NULL DEFAULT false,
            last_order text CHECK (last_order IN ('start', 'stop', 'restart', 'reset')),
            revision bigint NOT NULL DEFAULT 0,
            seen_at timestamptz NOT NULL
        )
        """
    )
    op.execute(
        """
        CREATE TABLE loop_events (
            event_id uuid PRIMARY KEY,
            loop text NOT NULL,
            at timestamptz NOT NULL,
            attempt integer NOT NULL CHECK (attempt >= 0),
            kind text NOT NULL CHECK (kind IN ('success', 'crashed', 'failed', 'manual')),
            error text,
            replica text NOT NULL
        )
        """
    )
    op.execute("CREATE INDEX loop_events_newest ON loop_events (at DESC)")
    op.execute("CREATE INDEX loop_events_of_one ON loop_events (loop, at DESC)")


def downgrade() -> None:
    op.execute("DROP TABLE loop_events")
    op.execute("DROP TABLE loops")
