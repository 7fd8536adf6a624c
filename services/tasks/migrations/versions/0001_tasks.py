"""Tasks, attempts, sessions, fairness counters, sweeps, outbox, idempotency keys."""

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
    CREATE TABLE tasks (
        id uuid PRIMARY KEY,
        kind text NOT NULL CHECK (kind IN ('TASK', 'TRAINING')),
        tenant text NOT NULL CHECK (tenant <> ''),
        task_type text NOT NULL,
        status text NOT NULL CHECK (status IN ('PENDING', 'EXECUTING', 'COMPLETED', 'FAILED', 'CANCELLED')),
        priority integer NOT NULL,
        queue_name text NOT NULL,
        provider_type text NOT NULL,
        lane text NOT NULL,
        created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL,
        started_at timestamptz,
        completed_at timestamptz,
        not_before timestamptz,
        attempt integer NOT NULL CHECK (attempt >= 0),
        retry_count integer NOT NULL CHECK (retry_count >= 0),
        released integer NOT NULL CHECK (released >= 0),
        is_resumed boolean NOT NULL,
        resume_attempt_count integer NOT NULL,
        last_resume_attempt timestamptz,
        version bigint NOT NULL,
        progress double precision NOT NULL CHECK (progress BETWEEN 0 AND 100),
        executor_type text,
        executor_instance text,
        lease_session uuid,
        lease_sequence bigint,
        leased_at timestamptz,
        error_category text CHECK (error_category IN ('VALIDATION', 'PROVIDER', 'RATE_LIMIT', 'TIMEOUT', 'RESOURCE',
            'CONTENT_POLICY', 'CANCELLED', 'INTERNAL')),
        errors text[] NOT NULL,
        origin_instance text NOT NULL,
        origin_zone text,
        origin_reference text,
        workflow_id uuid,
        webhook_url text,
        is_deleted boolean NOT NULL,
        deleted_at timestamptz,
        charged double precision NOT NULL,
        timeout_seconds double precision NOT NULL,
        warm_keys text[] NOT NULL,
        traceparent text NOT NULL,
        spec bytea NOT NULL,
        body bytea NOT NULL,
        result bytea,
        result_objects text[] NOT NULL,
        -- Set by a heartbeat that does not name the lease; null again once one does.
        missing_since timestamptz,
        CONSTRAINT leased_while_executing CHECK ((status = 'EXECUTING') = (lease_session IS NOT NULL)),
        CONSTRAINT ended_when_terminal CHECK (
            (status IN ('COMPLETED', 'FAILED', 'CANCELLED')) = (completed_at IS NOT NULL)),
        CONSTRAINT delayed_while_pending CHECK (not_before IS NULL OR status = 'PENDING')
    ) WITH (fillfactor = 80)
    """,
    # What the lease query reads: a tenant's waiting tasks of one lane, in the order they are served.
    """
    CREATE INDEX tasks_waiting ON tasks (queue_name, tenant, lane, priority DESC, created_at, id)
        WHERE status = 'PENDING' AND not_before IS NULL
    """,
    "CREATE INDEX tasks_delayed ON tasks (not_before) WHERE not_before IS NOT NULL",
    "CREATE INDEX tasks_leased ON tasks (lease_session) WHERE lease_session IS NOT NULL",
    "CREATE INDEX tasks_newest ON tasks (tenant, created_at DESC, id DESC)",
    "CREATE INDEX tasks_newest_of_all ON tasks (created_at DESC, id DESC)",
    "CREATE INDEX tasks_of_workflow ON tasks (workflow_id) WHERE workflow_id IS NOT NULL",
    """
    CREATE TABLE attempts (
        task_id uuid NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
        attempt integer NOT NULL CHECK (attempt >= 1),
        session uuid NOT NULL,
        executor_instance text NOT NULL,
        started_at timestamptz NOT NULL,
        ended_at timestamptz,
        outcome text CHECK (outcome IN ('COMPLETED', 'FAILED', 'EXPIRED', 'CANCELLED', 'RELEASED')),
        error text,
        error_category text,
        device_seconds double precision NOT NULL DEFAULT 0,
        -- When its slot was free again: later than its end where a cancelled attempt still had to stop.
        freed_at timestamptz,
        PRIMARY KEY (task_id, attempt),
        CHECK ((ended_at IS NULL) = (outcome IS NULL))
    )
    """,
    """
    CREATE TABLE sessions (
        id uuid PRIMARY KEY,
        subject text NOT NULL,
        name text NOT NULL,
        kind text NOT NULL,
        queues text[] NOT NULL,
        slots integer NOT NULL,
        task_types text[] NOT NULL,
        provider_types text[] NOT NULL,
        opened_at timestamptz NOT NULL,
        last_heartbeat timestamptz NOT NULL,
        expires_at timestamptz NOT NULL,
        closed_at timestamptz,
        draining boolean NOT NULL DEFAULT false,
        -- The last poll served, and the last one whose leases the worker is known to have received.
        sequence bigint NOT NULL DEFAULT 0,
        acknowledged bigint NOT NULL DEFAULT 0
    ) WITH (fillfactor = 50)
    """,
    "CREATE INDEX sessions_open ON sessions (expires_at) WHERE closed_at IS NULL",
    """
    CREATE TABLE queues (
        name text PRIMARY KEY,
        virtual_time double precision NOT NULL DEFAULT 0
    ) WITH (fillfactor = 50)
    """,
    """
    CREATE TABLE queue_tenants (
        queue text NOT NULL,
        tenant text NOT NULL,
        virtual_time double precision NOT NULL,
        pending bigint NOT NULL,
        -- Sum of what was charged, weighted: its growth is what moves the virtual time.
        charged double precision NOT NULL,
        PRIMARY KEY (queue, tenant)
    ) WITH (fillfactor = 50)
    """,
    """
    CREATE TABLE queue_lanes (
        queue text NOT NULL,
        tenant text NOT NULL,
        lane text NOT NULL,
        -- A copy of the tenant's, kept while work waits here, so that an index gives the tenants of a lane in order.
        virtual_time double precision NOT NULL,
        pending bigint NOT NULL,
        PRIMARY KEY (queue, tenant, lane)
    ) WITH (fillfactor = 50)
    """,
    "CREATE INDEX queue_lanes_next ON queue_lanes (queue, lane, virtual_time, tenant) WHERE pending > 0",
    # Identifiers of deleted tasks: they are never given again.
    """
    CREATE TABLE task_ids (
        id uuid PRIMARY KEY,
        tenant text NOT NULL,
        deleted_at timestamptz NOT NULL
    )
    """,
    # Prefixes whose objects are to be compared with their task once the time has come.
    """
    CREATE TABLE object_sweeps (
        task_id uuid NOT NULL,
        tenant text NOT NULL,
        prefix text NOT NULL,
        due_at timestamptz NOT NULL,
        PRIMARY KEY (task_id, due_at)
    )
    """,
    "CREATE INDEX object_sweeps_due ON object_sweeps (due_at)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
    metadata = sa.MetaData()
    outbox_table(metadata)
    idempotency_table(metadata)
    metadata.create_all(op.get_bind())


def downgrade() -> None:
    for table in [
        "object_sweeps",
        "task_ids",
        "queue_lanes",
        "queue_tenants",
        "queues",
        "sessions",
        "attempts",
        "tasks",
        "outbox",
        "idempotency_keys",
    ]:
        op.execute(f"DROP TABLE IF EXISTS {table}")
