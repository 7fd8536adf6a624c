"""Spare leases of calls what only limits need: an index of the gates that are not at rest, and none of calls."""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "CREATE INDEX provider_gates_restless ON provider_gates (provider, key) "
        "WHERE state <> 'closed' OR blocked_until IS NOT NULL OR waiting_since IS NOT NULL"
    )
    # Each lease wrote into it; whoever counts calls finds them by `tasks_leased`.
    op.execute("DROP INDEX tasks_calling")


def downgrade() -> None:
    op.execute(
        "CREATE INDEX tasks_calling ON tasks (provider_type, lane, tenant) "
        "WHERE lease_session IS NOT NULL AND provider_type <> 'LOCAL'"
    )
    op.execute("DROP INDEX provider_gates_restless")
