"""Workflows that run for photos."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE photo_runs (
        photo_id uuid PRIMARY KEY REFERENCES photos (id) ON DELETE CASCADE,
        -- Where the photo lies in storage.
        stored_path text NOT NULL,
        state text NOT NULL CHECK (state IN ('WAITING', 'RUNNING', 'COMPLETED', 'FAILED')),
        workflow_id uuid,
        error text,
        results text[] NOT NULL DEFAULT '{}',
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        ended_at timestamptz,
        CONSTRAINT told_why_it_failed CHECK ((state = 'FAILED') = (error IS NOT NULL)),
        CONSTRAINT ended_when_it_ended CHECK ((state IN ('COMPLETED', 'FAILED')) = (ended_at IS NOT NULL))
    )
    """,
    "CREATE INDEX photo_runs_open ON photo_runs (state, created_at) WHERE state IN ('WAITING', 'RUNNING')",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE photo_runs")
