"""Trainings, what trainers told of them, objects to delete, webhooks to hand in, outbox, idempotency keys."""

import sqlalchemy as sa
from alembic import op

from meshkit.idempotency import idempotency_table
from meshkit.leadership import CREATE_LEADERS
from meshkit.outbox import outbox_table

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE trainings (
        id uuid PRIMARY KEY,
        tenant text NOT NULL CHECK (tenant <> ''),
        status text NOT NULL CHECK (status IN ('PENDING', 'PREPROCESSING', 'TRAINING', 'COMPLETED', 'FAILED',
            'CANCELLED')),
        priority integer NOT NULL,
        priority_changed_at timestamptz,
        created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL,
        started_at timestamptz,
        completed_at timestamptz,
        attempt integer NOT NULL CHECK (attempt >= 0),
        version bigint NOT NULL,
        progress double precision NOT NULL CHECK (progress BETWEEN 0 AND 100),
        current_step integer NOT NULL CHECK (current_step BETWEEN 0 AND total_steps),
        total_steps integer NOT NULL CHECK (total_steps >= 1),
        eta_seconds integer CHECK (eta_seconds >= 0),
        request bytea NOT NULL,
        webhook_url text,
        seed bigint NOT NULL CHECK (seed >= 0),
        masked_loss boolean NOT NULL,
        start_from text,
        start_from_tenant text NOT NULL,
        continues uuid REFERENCES trainings (id),
        job_made boolean NOT NULL,
        resume_step integer,
        resume_objects text[] NOT NULL,
        manifest_path text,
        local_model_path text,
        wanted_samples text[] NOT NULL,
        logs text NOT NULL,
        error_message text,
        error_category text CHECK (error_category IN ('VALIDATION', 'PROVIDER', 'RATE_LIMIT', 'TIMEOUT', 'RESOURCE',
            'CONTENT_POLICY', 'CANCELLED', 'INTERNAL')),
        preprocessing_stage text CHECK (preprocessing_stage IN ('downloading', 'validating', 'transforming',
            'captioning', 'caching', 'completed')),
        processed_files_count integer,
        total_files_count integer,
        preprocessing_started_at timestamptz,
        preprocessing_completed_at timestamptz,
        traceparent text NOT NULL,
        -- When its objects were deleted for their age.
        swept_at timestamptz,
        CONSTRAINT ended_when_terminal CHECK (
            (status IN ('COMPLETED', 'FAILED', 'CANCELLED')) = (completed_at IS NOT NULL)),
        CONSTRAINT adapter_when_completed CHECK (status <> 'COMPLETED' OR local_model_path IS NOT NULL),
        CONSTRAINT started_when_attempted CHECK ((attempt = 0) = (started_at IS NULL))
    ) WITH (fillfactor = 70)
    """,
    "CREATE INDEX trainings_newest ON trainings (tenant, created_at DESC, id DESC)",
    "CREATE INDEX trainings_newest_of_all ON trainings (created_at DESC, id DESC)",
    # What the loops read, and what a tenant's limit counts.
    "CREATE INDEX trainings_open ON trainings (tenant, id) WHERE completed_at IS NULL",
    "CREATE INDEX trainings_to_sweep ON trainings (completed_at) WHERE completed_at IS NOT NULL AND swept_at IS NULL",
    """
    CREATE TABLE datasets (
        training_id uuid PRIMARY KEY REFERENCES trainings (id) ON DELETE CASCADE,
        -- A serialized GetTrainingDatasetResponse.
        dataset bytea NOT NULL
    )
    """,
    """
    CREATE TABLE losses (
        training_id uuid NOT NULL REFERENCES trainings (id) ON DELETE CASCADE,
        step integer NOT NULL,
        loss double precision NOT NULL,
        PRIMARY KEY (training_id, step)
    )
    """,
    """
    CREATE TABLE validation_losses (
        training_id uuid NOT NULL REFERENCES trainings (id) ON DELETE CASCADE,
        step integer NOT NULL,
        bucket text NOT NULL,
        loss double precision NOT NULL,
        PRIMARY KEY (training_id, step, bucket)
    )
    """,
    """
    CREATE TABLE saves (
        training_id uuid NOT NULL REFERENCES trainings (id) ON DELETE CASCADE,
        step integer NOT NULL,
        path text NOT NULL,
        size bigint NOT NULL,
        sha256 text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (training_id, step)
    )
    """,
    """
    CREATE TABLE samples (
        training_id uuid NOT NULL REFERENCES trainings (id) ON DELETE CASCADE,
        step integer NOT NULL,
        index integer NOT NULL,
        prompt text NOT NULL,
        seed bigint NOT NULL,
        path text NOT NULL,
        PRIMARY KEY (training_id, step, index)
    )
    """,
    # Objects that nothing names any more, or that a training which never came to be may have left. A path that ends in
    # `/` is a folder.
    """
    CREATE TABLE object_sweeps (
        training_id uuid NOT NULL,
        tenant text NOT NULL,
        path text NOT NULL,
        due_at timestamptz NOT NULL,
        -- Deleted only where the training does not exist.
        is_intent boolean NOT NULL DEFAULT false,
        PRIMARY KEY (training_id, path, due_at)
    )
    """,
    "CREATE INDEX object_sweeps_due ON object_sweeps (due_at)",
    # Events on their way to the webhook of their training; the tasks service delivers them.
    """
    CREATE TABLE webhook_handovers (
        event_id uuid PRIMARY KEY,
        position bigint GENERATED ALWAYS AS IDENTITY,
        training_id uuid NOT NULL,
        tenant text NOT NULL,
        version bigint NOT NULL,
        url text NOT NULL,
        event_name text NOT NULL,
        event bytea NOT NULL
    )
    """,
    "CREATE INDEX webhook_handovers_order ON webhook_handovers (position)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
    op.execute(CREATE_LEADERS)
    metadata = sa.MetaData()
    outbox_table(metadata)
    idempotency_table(metadata)
    metadata.create_all(op.get_bind())


def downgrade() -> None:
    tables = ["webhook_handovers", "object_sweeps", "samples", "saves", "validation_losses", "losses", "datasets"]
    for table in [*tables, "trainings", "outbox", "idempotency_keys", "leaders"]:
        op.execute(f"DROP TABLE IF EXISTS {table}")
