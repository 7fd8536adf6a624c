"""Photos that nobody could look at because their content was out of reach; should it come again, it is a new photo."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

UPGRADE = (
    """
    ALTER TABLE photos
        -- Its content went, or could not be read, before anybody had looked.
        ADD COLUMN missed boolean NOT NULL DEFAULT false,
        ADD CONSTRAINT failed_when_missed CHECK (NOT missed OR state = 'FAILED')
    """,
    """
    UPDATE photos SET missed = true WHERE state = 'FAILED' AND (
        error IN ('The file was gone before it could be looked at.',
            'The file had another content before it could be looked at.')
        OR error LIKE 'The file cannot be read: %' OR error LIKE 'Its file cannot be read: %')
    """,
    "DROP INDEX photos_once",
    # One content of one file is one photo, but for those that were missed.
    "CREATE UNIQUE INDEX photos_once ON photos (file, sha256) WHERE NOT missed",
)
DOWNGRADE = (
    """
    DELETE FROM photos p WHERE missed AND EXISTS (
        SELECT FROM photos o WHERE o.file = p.file AND o.sha256 = p.sha256 AND (NOT o.missed OR o.id > p.id))
    """,
    "DROP INDEX photos_once",
    "CREATE UNIQUE INDEX photos_once ON photos (file, sha256)",
    "ALTER TABLE photos DROP COLUMN missed",
)


def upgrade() -> None:
    for statement in UPGRADE:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWNGRADE:
        op.execute(statement)
