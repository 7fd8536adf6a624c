"""Record an ended task by its version in the step's row alone, and index what the reconciler looks for."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

STATEMENTS = (
    # `steps.task_version` is written in the transaction of the effect, and says the same for every way of hearing.
    "DROP TABLE consumed_events",
    # With thousands of steps under way, those to be asked for and those to be stopped are found without the others.
    "CREATE INDEX steps_to_check ON steps (checked_at) WHERE task_open AND state = 'RUNNING'",
    "CREATE INDEX steps_to_stop ON steps (checked_at) WHERE task_open AND state NOT IN ('DISPATCHING', 'RUNNING')",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    for index in ["steps_to_check", "steps_to_stop"]:
        op.execute(f"DROP INDEX {index}")
    op.execute(
        "CREATE TABLE consumed_events (event_id uuid PRIMARY KEY, consumed_at timestamptz NOT NULL DEFAULT now())"
    )
    op.execute("CREATE INDEX consumed_events_age ON consumed_events (consumed_at)")
