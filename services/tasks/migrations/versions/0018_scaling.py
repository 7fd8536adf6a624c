"""Workers can be cordoned; how long attempts take is measured.

A replica of the release before leases to cordoned workers: cordon none before all replicas are new.
"""

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE sessions
            ADD COLUMN cordoned text CHECK (cordoned IN ('OPERATOR', 'SCHEDULER')),
            ADD COLUMN cordoned_at timestamptz,
            -- Whether the orchestrator would remove the worker first: it may by now, or it does.
            ADD COLUMN mark text CHECK (mark IN ('ANNOUNCED', 'SET')),
            -- No lease before: one that bore a mark may have been chosen already.
            ADD COLUMN leases_after timestamptz
        """
    )
    op.execute("CREATE INDEX sessions_by_name ON sessions (name, opened_at)")
    op.execute(
        """
        CREATE TABLE work_times (
            lane text NOT NULL,
            -- Empty for all of the lane.
            model text NOT NULL,
            seconds double precision NOT NULL CHECK (seconds >= 0),
            attempts integer NOT NULL CHECK (attempts > 0),
            measured_at timestamptz NOT NULL,
            PRIMARY KEY (lane, model)
        ) WITH (fillfactor = 50)
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE work_times")
    op.execute("DROP INDEX sessions_by_name")
    op.execute(
        "ALTER TABLE sessions DROP COLUMN cordoned, DROP COLUMN cordoned_at, DROP COLUMN mark, DROP COLUMN leases_after"
    )
