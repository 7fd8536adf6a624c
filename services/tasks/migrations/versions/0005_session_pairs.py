"""Sessions name the pairs that their workers run, in place of types and providers that were combined each with each.

Replicas of the release before still open sessions during the upgrade: what they write has no pairs and is read as the
product of its types and providers. To them a session with pairs runs nothing, so that they lease it nothing wrong.
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "ALTER TABLE sessions ADD COLUMN pairs text[], ALTER COLUMN task_types SET DEFAULT '{}', "
        "ALTER COLUMN provider_types SET DEFAULT '{}'"
    )


def downgrade() -> None:
    op.execute(
        "ALTER TABLE sessions DROP COLUMN pairs, ALTER COLUMN task_types DROP DEFAULT, "
        "ALTER COLUMN provider_types DROP DEFAULT"
    )
