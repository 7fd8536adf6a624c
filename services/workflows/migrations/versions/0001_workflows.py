"""Workflows, steps, consumed events, outbox, idempotency keys."""

import sqlalchemy as sa
from alembic import op

from meshkit.idempotency import idempotency_table
from meshkit.outbox import outbox_table

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE workflows (
        id uuid PRIMARY KEY,
        tenant text NOT NULL CHECK (tenant <> ''),
        name text NOT NULL,
        description text,
        status text NOT NULL CHECK (status IN ('PENDING', 'RUNNING', 'PAUSED', 'COMPLETED', 'FAILED', 'CANCELLED')),
        on_failure text NOT NULL CHECK (on_failure IN ('finish_running', 'cancel')),
        config bytea NOT NULL,
        suppress_subtask_events boolean NOT NULL,
        origin_instance text NOT NULL,
        origin_zone text,
        origin_reference text,
        webhook_url text,
        total_steps integer NOT NULL CHECK (total_steps BETWEEN 1 AND 200),
        completed_steps integer NOT NULL CHECK (completed_steps BETWEEN 0 AND total_steps),
        current_step text,
        final_step_id text NOT NULL,
        error_message text,
        errors text[] NOT NULL,
        started_at timestamptz,
        completed_at timestamptz,
        created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL,
        is_deleted boolean NOT NULL,
        deleted_at timestamptz,
        version bigint NOT NULL,
        traceparent text NOT NULL,
        CONSTRAINT ended_when_terminal CHECK (
            (status IN ('COMPLETED', 'FAILED', 'CANCELLED')) = (completed_at IS NOT NULL)),
        CONSTRAINT completed_when_all_are CHECK (status <> 'COMPLETED' OR completed_steps = total_steps)
    ) WITH (fillfactor = 70)
    """,
    "CREATE INDEX workflows_newest ON workflows (tenant, created_at DESC, id DESC)",
    "CREATE INDEX workflows_newest_of_all ON workflows (created_at DESC, id DESC)",
    """
    CREATE TABLE steps (
        id uuid PRIMARY KEY,
        workflow_id uuid NOT NULL REFERENCES workflows (id) ON DELETE CASCADE,
        step_id text NOT NULL,
        position integer NOT NULL,
        task_type text NOT NULL,
        definition bytea NOT NULL,
        depends_on text[] NOT NULL,
        state text NOT NULL CHECK (state IN ('PENDING', 'DISPATCHING', 'RUNNING', 'COMPLETED', 'FAILED', 'SKIPPED',
            'CANCELLED')),
        attempt integer NOT NULL CHECK (attempt >= 0),
        task_id uuid,
        task_version bigint NOT NULL,
        task_open boolean NOT NULL,
        result bytea,
        error_message text,
        retry_count integer NOT NULL CHECK (retry_count BETWEEN 0 AND max_retries),
        max_retries integer NOT NULL,
        started_at timestamptz,
        completed_at timestamptz,
        created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL,
        dispatched_at timestamptz,
        checked_at timestamptz,
        UNIQUE (workflow_id, step_id),
        UNIQUE (workflow_id, position),
        CONSTRAINT task_once_dispatched CHECK ((attempt = 0) = (task_id IS NULL)),
        CONSTRAINT open_while_active CHECK (state NOT IN ('DISPATCHING', 'RUNNING') OR task_open),
        CONSTRAINT result_when_completed CHECK ((state = 'COMPLETED') = (result IS NOT NULL)),
        CONSTRAINT ended_when_terminal CHECK (
            (state IN ('COMPLETED', 'FAILED', 'SKIPPED', 'CANCELLED')) = (completed_at IS NOT NULL))
    ) WITH (fillfactor = 70)
    """,
    # A task belongs to one step: no two rows can wait for the same one.
    "CREATE UNIQUE INDEX steps_of_task ON steps (task_id) WHERE task_id IS NOT NULL",
    # What the reconciler reads: steps whose task is still to be made, heard of or cancelled.
    "CREATE INDEX steps_open ON steps (state, dispatched_at) WHERE task_open",
    """
    CREATE TABLE consumed_events (
        event_id uuid PRIMARY KEY,
        consumed_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX consumed_events_age ON consumed_events (consumed_at)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
    metadata = sa.MetaData()
    outbox_table(metadata)
    idempotency_table(metadata)
    metadata.create_all(op.get_bind())


def downgrade() -> None:
    for table in ["consumed_events", "steps", "workflows", "outbox", "idempotency_keys"]:
        op.execute(f"DROP TABLE IF EXISTS {table}")
