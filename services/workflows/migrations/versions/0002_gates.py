"""Conditions, approvals and timeouts of steps."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    ALTER TABLE steps
        ADD COLUMN condition bytea,
        ADD COLUMN approval text NOT NULL DEFAULT 'not_needed'
            CHECK (approval IN ('not_needed', 'needed', 'asked', 'given')),
        ADD COLUMN timeout_seconds double precision CHECK (timeout_seconds > 0),
        ADD COLUMN overdue boolean NOT NULL DEFAULT false
    """,
    "CREATE INDEX steps_timed ON steps (dispatched_at) WHERE task_open AND timeout_seconds IS NOT NULL",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP INDEX steps_timed")
    for column in ["condition", "approval", "timeout_seconds", "overdue"]:
        op.execute(f"ALTER TABLE steps DROP COLUMN {column}")
