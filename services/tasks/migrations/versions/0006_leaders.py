"""Who of the replicas does what one at a time does: a row with an end in place of a lock of the session."""

from alembic import op

from meshkit.leadership import CREATE_LEADERS

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(CREATE_LEADERS)


def downgrade() -> None:
    op.execute("DROP TABLE leaders")
