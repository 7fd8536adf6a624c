"""Note the tasks that a statement changes as one row of each kind, as those that it creates: each had a row of its own.

What is counted stays the same. A statement that moves no task to another place, as one of progress, notes nothing.
"""

from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

# Where only the state changes, a task leaves one place and enters another in one row; where more does, in two.
_NOTE = """
CREATE FUNCTION note_changed_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO task_changes
    WITH changed AS (
        SELECT n.tenant, n.task_type, date_trunc('minute', n.created_at) AS created_minute, n.queue_name,
            o.provider_type AS provider_before, o.origin_instance AS instance_before,
            coalesce(o.origin_zone, '') AS zone_before,
            n.provider_type, n.origin_instance, coalesce(n.origin_zone, '') AS origin_zone,
            CASE WHEN o.kind = 'TASK' AND NOT o.is_deleted THEN o.status END AS status_before,
            CASE WHEN n.kind = 'TASK' AND NOT n.is_deleted THEN n.status END AS status,
            coalesce(n.executor_instance, '') AS worker, n.completed_at, n.started_at,
            extract(epoch FROM n.started_at - n.created_at)::float8 * 1000 AS waited_ms,
            (o.provider_type, o.origin_instance, o.origin_zone)
                IS DISTINCT FROM (n.provider_type, n.origin_instance, n.origin_zone) AS moves,
            o.started_at IS NULL AND n.started_at IS NOT NULL AS starts,
            o.status <> 'COMPLETED' AND n.status = 'COMPLETED' AS completes
        FROM rows_before o JOIN rows_now n ON n.id = o.id
        WHERE (o.status, o.provider_type, o.origin_instance, o.origin_zone, o.is_deleted)
            IS DISTINCT FROM (n.status, n.provider_type, n.origin_instance, n.origin_zone, n.is_deleted)
    )
    SELECT tenant, instance_before, zone_before, task_type, provider_before, created_minute, status_before, NULL,
        count(*), '', '', NULL::timestamptz, 0, 0, 0
    FROM changed WHERE status_before IS NOT NULL AND (moves OR status IS NULL) GROUP BY 1, 2, 3, 4, 5, 6, 7
    UNION ALL
    SELECT tenant, origin_instance, origin_zone, task_type, provider_type, created_minute,
        CASE WHEN NOT moves AND status IS NOT NULL THEN status_before END, status, count(*), queue_name, worker,
        date_trunc('minute', CASE WHEN completes THEN completed_at WHEN starts THEN started_at END),
        count(*) FILTER (WHERE starts), coalesce(sum(greatest(0, waited_ms)) FILTER (WHERE starts), 0),
        count(*) FILTER (WHERE completes)
    FROM changed WHERE status IS NOT NULL OR starts OR completes GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12;
    RETURN NULL;
END $$
"""

_OF_STATEMENT = """
CREATE TRIGGER count_changed_tasks AFTER UPDATE ON tasks REFERENCING OLD TABLE AS rows_before NEW TABLE AS rows_now
    FOR EACH STATEMENT EXECUTE FUNCTION note_changed_tasks()
"""
# As revision 0022 made it.
_OF_ROW = """
CREATE TRIGGER count_changed_tasks
    AFTER UPDATE OF status, provider_type, origin_instance, origin_zone, is_deleted ON tasks FOR EACH ROW
    WHEN ((OLD.status, OLD.provider_type, OLD.origin_instance, OLD.origin_zone, OLD.is_deleted)
        IS DISTINCT FROM (NEW.status, NEW.provider_type, NEW.origin_instance, NEW.origin_zone, NEW.is_deleted))
    EXECUTE FUNCTION note_changed_task()
"""


def upgrade() -> None:
    op.execute(_NOTE)
    op.execute("DROP TRIGGER count_changed_tasks ON tasks")
    op.execute(_OF_STATEMENT)


def downgrade() -> None:
    op.execute("DROP TRIGGER count_changed_tasks ON tasks")
    op.execute("DROP FUNCTION note_changed_tasks()")
    op.execute(_OF_ROW)
