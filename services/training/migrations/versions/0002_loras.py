"""The LoRA library."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE loras (
        id uuid PRIMARY KEY,
        tenant text NOT NULL CHECK (tenant <> ''),
        folder text NOT NULL CHECK (folder IN ('clothes', 'identities', 'product', 'styles', 'faces',
            'no_type_provided')),
        name text NOT NULL CHECK (name <> '' AND name NOT LIKE '%/%'),
        bin_name text CHECK (bin_name NOT LIKE '%/%'),
        filename text NOT NULL,
        bytes bigint NOT NULL CHECK (bytes > 0),
        sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
        layout text NOT NULL,
        base_model text NOT NULL,
        rank integer NOT NULL CHECK (rank > 0),
        unmatched text[] NOT NULL,
        trigger_word text,
        notes jsonb NOT NULL,
        thumbnail text,
        training_id uuid UNIQUE,
        state text NOT NULL CHECK (state IN ('STORED', 'DELETED')),
        settled boolean NOT NULL,
        created_at timestamptz NOT NULL,
        deleted_at timestamptz,
        updated_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT in_the_bin CHECK ((state = 'DELETED') = (deleted_at IS NOT NULL)),
        CONSTRAINT named_in_the_bin CHECK (state <> 'DELETED' OR bin_name IS NOT NULL)
    )
    """,
    # A name is one file's; in the bin each has a name of its own, until it has left it.
    "CREATE UNIQUE INDEX loras_by_name ON loras (tenant, folder, name) WHERE state = 'STORED'",
    "CREATE UNIQUE INDEX loras_in_bin ON loras (tenant, folder, bin_name) WHERE bin_name IS NOT NULL",
    "CREATE INDEX loras_newest ON loras (tenant, created_at DESC, id DESC)",
    "CREATE INDEX loras_unsettled ON loras (updated_at) WHERE NOT settled",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE IF EXISTS loras")
