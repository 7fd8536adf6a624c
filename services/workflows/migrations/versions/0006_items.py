"""Steps with a task for each item of a list."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

STATEMENTS = (
    # An item is a row like a step's, after all steps.
    """
    ALTER TABLE steps
        ADD COLUMN for_each bytea,
        ADD COLUMN parent text,
        ADD COLUMN item bytea,
        ADD COLUMN item_index integer CHECK (item_index BETWEEN 0 AND 199),
        ADD CONSTRAINT item_of_a_step CHECK (
            (parent IS NULL) = (item IS NULL) AND (parent IS NULL) = (item_index IS NULL)),
        ADD CONSTRAINT items_have_the_tasks CHECK (for_each IS NULL OR (task_id IS NULL AND parent IS NULL)),
        DROP CONSTRAINT open_while_active,
        ADD CONSTRAINT open_while_active CHECK (
            state NOT IN ('DISPATCHING', 'RUNNING') OR task_open OR for_each IS NOT NULL)
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DELETE FROM steps WHERE parent IS NOT NULL")
    op.execute("UPDATE steps SET task_open = true WHERE for_each IS NOT NULL AND state IN ('DISPATCHING', 'RUNNING')")
    op.execute(
        """
        ALTER TABLE steps
            DROP CONSTRAINT open_while_active,
            DROP CONSTRAINT items_have_the_tasks,
            DROP CONSTRAINT item_of_a_step,
            DROP COLUMN for_each, DROP COLUMN parent, DROP COLUMN item, DROP COLUMN item_index,
            ADD CONSTRAINT open_while_active CHECK (state NOT IN ('DISPATCHING', 'RUNNING') OR task_open)
        """
    )
