"""Cameras, photos, what was found on them, batches, events, alerts, webhooks to hand in, outbox."""

import sqlalchemy as sa
from alembic import op

from meshkit.leadership import CREATE_LEADERS
from meshkit.outbox import outbox_table

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE cameras (
        -- Name of the folder.
        id text PRIMARY KEY CHECK (id <> '' AND id NOT LIKE '%/%'),
        enabled boolean NOT NULL DEFAULT true,
        status text NOT NULL DEFAULT 'unknown' CHECK (status IN ('online', 'offline', 'error', 'unknown')),
        previous_status text NOT NULL DEFAULT 'unknown'
            CHECK (previous_status IN ('online', 'offline', 'error', 'unknown')),
        message text,
        last_file_at timestamptz,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE TABLE batches (
        id uuid PRIMARY KEY,
        camera_id text NOT NULL REFERENCES cameras (id),
        state text NOT NULL CHECK (state IN ('open', 'closed', 'analysed')),
        started_at timestamptz NOT NULL,
        last_activity_at timestamptz NOT NULL,
        closed_at timestamptz,
        photo_count integer NOT NULL CHECK (photo_count > 0),
        deleted_at timestamptz,
        CONSTRAINT begins_before_it_ends CHECK (last_activity_at >= started_at),
        CONSTRAINT closed_when_complete CHECK ((state = 'open') = (closed_at IS NULL))
    )
    """,
    "CREATE UNIQUE INDEX batches_one_open ON batches (camera_id) WHERE state = 'open'",
    "CREATE INDEX batches_newest ON batches (started_at DESC, id DESC)",
    "CREATE INDEX batches_to_analyse ON batches (closed_at) WHERE state = 'closed'",
    """
    CREATE TABLE photos (
        id uuid PRIMARY KEY,
        camera_id text NOT NULL REFERENCES cameras (id),
        -- Its file below the root, as the file system names it; and the same for people.
        file bytea NOT NULL,
        path text NOT NULL,
        size bigint NOT NULL CHECK (size >= 0),
        modified_ns bigint NOT NULL,
        -- Empty where the content was not read.
        sha256 text NOT NULL CHECK (sha256 ~ '^([0-9a-f]{64})?$'),
        state text NOT NULL CHECK (state IN ('WAITING', 'DETECTING', 'DETECTED', 'FAILED')),
        task_id uuid UNIQUE,
        error text,
        seen_at timestamptz NOT NULL,
        detected_at timestamptz,
        batch_id uuid REFERENCES batches (id),
        findings jsonb,
        -- A row whose file is still there stays when it is deleted: else the file would be a new photo.
        deleted_at timestamptz,
        CONSTRAINT told_why_it_failed CHECK ((state = 'FAILED') = (error IS NOT NULL)),
        CONSTRAINT looked_at_when_detected CHECK ((state = 'DETECTED') = (detected_at IS NOT NULL))
    )
    """,
    # One content of one file is one photo.
    "CREATE UNIQUE INDEX photos_once ON photos (file, sha256)",
    "CREATE INDEX photos_by_content ON photos (camera_id, sha256)",
    "CREATE INDEX photos_newest ON photos (seen_at DESC, id DESC)",
    "CREATE INDEX photos_of_batch ON photos (batch_id)",
    "CREATE INDEX photos_hidden ON photos (id) WHERE deleted_at IS NOT NULL",
    "CREATE INDEX photos_to_gather ON photos (camera_id, seen_at, id) WHERE batch_id IS NULL",
    "CREATE INDEX photos_to_look_at ON photos (seen_at, id) WHERE state IN ('WAITING', 'DETECTING')",
    """
    CREATE TABLE detections (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        photo_id uuid NOT NULL REFERENCES photos (id) ON DELETE CASCADE,
        camera_id text NOT NULL REFERENCES cameras (id),
        object_type text NOT NULL,
        label text NOT NULL,
        confidence double precision NOT NULL CHECK (confidence BETWEEN 0 AND 1),
        -- x, y, width, height in pixels; null for what concerns the whole photo.
        bbox double precision[] CHECK (bbox IS NULL OR cardinality(bbox) = 4),
        detected_at timestamptz NOT NULL
    )
    """,
    "CREATE INDEX detections_of_photo ON detections (photo_id)",
    """
    CREATE TABLE events (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        batch_id uuid NOT NULL UNIQUE REFERENCES batches (id),
        camera_id text NOT NULL REFERENCES cameras (id),
        risk_score integer NOT NULL CHECK (risk_score BETWEEN 0 AND 100),
        risk_level text NOT NULL CHECK (risk_level IN ('low', 'medium', 'high', 'critical')),
        summary text NOT NULL,
        reasoning text NOT NULL,
        started_at timestamptz NOT NULL,
        ended_at timestamptz NOT NULL,
        facts jsonb NOT NULL,
        -- Task that is asked for a summary; null where none is, or its answer was taken.
        text_task_id uuid UNIQUE,
        reviewed_by text,
        reviewed_at timestamptz,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        deleted_at timestamptz,
        CONSTRAINT reviewed_by_somebody CHECK ((reviewed_by IS NULL) = (reviewed_at IS NULL))
    )
    """,
    "CREATE INDEX events_newest ON events (created_at DESC, id DESC) WHERE deleted_at IS NULL",
    "CREATE INDEX events_oldest ON events (created_at, id)",
    "CREATE INDEX events_asked ON events (created_at) WHERE text_task_id IS NOT NULL",
    """
    CREATE TABLE alerts (
        id uuid PRIMARY KEY,
        event_id bigint NOT NULL REFERENCES events (id) ON DELETE CASCADE,
        camera_id text NOT NULL REFERENCES cameras (id),
        rule text NOT NULL,
        severity text NOT NULL CHECK (severity IN ('info', 'warning', 'critical')),
        message text NOT NULL,
        state text NOT NULL CHECK (state IN ('open', 'acknowledged', 'dismissed')),
        created_at timestamptz NOT NULL DEFAULT now(),
        acknowledged_by text,
        acknowledged_at timestamptz,
        dismissed_by text,
        dismissed_at timestamptz,
        UNIQUE (event_id, rule),
        CONSTRAINT acknowledged_by_somebody CHECK ((acknowledged_by IS NULL) = (acknowledged_at IS NULL)),
        CONSTRAINT dismissed_by_somebody CHECK ((dismissed_by IS NULL) = (dismissed_at IS NULL)),
        CONSTRAINT dismissed_when CHECK ((state = 'dismissed') = (dismissed_at IS NOT NULL))
    )
    """,
    "CREATE INDEX alerts_newest ON alerts (created_at DESC, id DESC)",
    "CREATE INDEX alerts_of_rule ON alerts (rule, camera_id, created_at)",
    # Alerts on their way to the webhook of their rule; the tasks service delivers them.
    """
    CREATE TABLE webhook_handovers (
        event_id uuid PRIMARY KEY,
        position bigint GENERATED ALWAYS AS IDENTITY,
        alert_id uuid NOT NULL,
        version bigint NOT NULL,
        url text NOT NULL,
        event_name text NOT NULL,
        event bytea NOT NULL
    )
    """,
    "CREATE INDEX webhook_handovers_order ON webhook_handovers (position)",
)
TABLES = (
    *("webhook_handovers", "alerts", "events", "detections", "photos", "batches", "cameras"),
    *("outbox", "leaders"),
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
    op.execute(CREATE_LEADERS)
    metadata = sa.MetaData()
    outbox_table(metadata)
    metadata.create_all(op.get_bind())


def downgrade() -> None:
    for table in TABLES:
        op.execute(f"DROP TABLE IF EXISTS {table}")
