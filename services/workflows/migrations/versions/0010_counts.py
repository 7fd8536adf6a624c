"""Count workflows in the transaction of each change.

Triggers note every change, whoever makes it, as rows that nobody waits for: a counter itself would be one row that all
transactions of a tenant lock. A loop folds the notes into the counters; who reads adds what is not folded yet.
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# By whom, where and how workflows are counted. Hidden ones are, too: some lists have them.
_PLACE = "tenant, origin_instance, origin_zone, status, is_deleted"


def _place(row: str) -> str:
    columns = ", ".join(f"{row}.{name}" for name in _PLACE.split(", "))
    return f"{columns}, date_trunc('minute', {row}.created_at)"


def _of_statement(function: str, rows: str, sign: str) -> str:
    """Return a trigger's function that notes the workflows that a statement has created or removed."""
    return f"""
    CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO workflow_changes
        SELECT {_place("w")}, {sign}count(*), {sign}sum(w.total_steps) FROM {rows} w GROUP BY 1, 2, 3, 4, 5, 6;
        RETURN NULL;
    END $$
    """  # noqa: S608 -- constants


_MOVES = f"{_PLACE}, created_at, total_steps".split(", ")
_COLUMNS = """
        tenant text NOT NULL,
        origin_instance text NOT NULL,
        origin_zone text,
        status text NOT NULL,
        is_deleted boolean NOT NULL,
"""

STATEMENTS = (
    f"""
    CREATE TABLE workflow_changes ({_COLUMNS}
        created_minute timestamptz NOT NULL,
        workflows integer NOT NULL,
        steps integer NOT NULL
    )
    """,
    f"""
    CREATE TABLE workflow_counts ({_COLUMNS}
        workflows bigint NOT NULL,
        steps bigint NOT NULL,
        UNIQUE NULLS NOT DISTINCT ({_PLACE})
    ) WITH (fillfactor = 50)
    """,
    """
    CREATE TABLE workflow_creations (
        created_minute timestamptz NOT NULL,
        tenant text NOT NULL,
        origin_instance text NOT NULL,
        origin_zone text,
        workflows bigint NOT NULL,
        UNIQUE NULLS NOT DISTINCT (created_minute, tenant, origin_instance, origin_zone)
    ) WITH (fillfactor = 50)
    """,
    _of_statement("note_new_workflows", "added", "+"),
    _of_statement("note_removed_workflows", "removed", "-"),
    f"""
    CREATE FUNCTION note_changed_workflow() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO workflow_changes
        VALUES ({_place("OLD")}, -1, -OLD.total_steps), ({_place("NEW")}, 1, NEW.total_steps);
        RETURN NULL;
    END $$
    """,  # noqa: S608 -- constants
    """
    CREATE TRIGGER count_new_workflows AFTER INSERT ON workflows REFERENCING NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION note_new_workflows()
    """,
    """
    CREATE TRIGGER count_removed_workflows AFTER DELETE ON workflows REFERENCING OLD TABLE AS removed
        FOR EACH STATEMENT EXECUTE FUNCTION note_removed_workflows()
    """,
    # Of each row: most statements move no workflow, as the ends of steps, and a trigger of statements would cost them
    # half of what they cost by themselves.
    f"""
    CREATE TRIGGER count_changed_workflows AFTER UPDATE ON workflows FOR EACH ROW
        WHEN (({", ".join(f"OLD.{name}" for name in _MOVES)})
            IS DISTINCT FROM ({", ".join(f"NEW.{name}" for name in _MOVES)}))
        EXECUTE FUNCTION note_changed_workflow()
    """,
    # No other transaction writes workflows between the triggers and this.
    f"INSERT INTO workflow_counts SELECT {_PLACE}, count(*), sum(total_steps) FROM workflows GROUP BY {_PLACE}",  # noqa: S608 -- constants
    """
    INSERT INTO workflow_creations
    SELECT date_trunc('minute', created_at), tenant, origin_instance, origin_zone, count(*) FROM workflows
    WHERE NOT is_deleted AND created_at > now() - interval '25 hours' GROUP BY 1, 2, 3, 4
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    for trigger in ("count_new_workflows", "count_changed_workflows", "count_removed_workflows"):
        op.execute(f"DROP TRIGGER {trigger} ON workflows")
    for function in ("note_new_workflows", "note_changed_workflow", "note_removed_workflows"):
        op.execute(f"DROP FUNCTION {function}()")
    for table in ("workflow_creations", "workflow_counts", "workflow_changes"):
        op.execute(f"DROP TABLE {table}")
