"""Note a change of a task as one row, and what a statement creates, removes or ends as one row of each kind.

A change left up to three rows, of two triggers, in two tables; each is written, read, deleted and vacuumed away. What
is counted stays the same. The two tables stay, empty, for replicas of the version before.
"""

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

_DIMENSIONS = """{of}.tenant, {of}.origin_instance, coalesce({of}.origin_zone, ''), {of}.task_type, {of}.provider_type,
    date_trunc('minute', {of}.created_at)"""

# What was used by attempts that a statement ended, as rows of `usage_changes`.
_ENDED = """
    CREATE OR REPLACE FUNCTION note_ended_attempts() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO usage_changes
        SELECT (a.ended_at AT TIME ZONE 'UTC')::date, t.tenant,
            CASE WHEN t.kind = 'TASK' THEN t.task_type ELSE t.kind END, coalesce(a.provider_type, t.provider_type),
            a.model, split_part(a.device, ':', 1), '', {counted}, 0, 0, 0, 0
        FROM added a CROSS JOIN LATERAL (
            SELECT kind, tenant, task_type, provider_type FROM tasks WHERE id = a.task_id OFFSET 0) t
        WHERE a.outcome IS NOT NULL AND a.outcome <> 'RELEASED' {grouped};
        RETURN NULL;
    END $$
"""
_EACH = """1, (a.outcome IN ('FAILED', 'EXPIRED'))::integer,
            greatest(0, extract(epoch FROM a.ended_at - a.started_at)), a.device_seconds"""
_TOGETHER = """count(*), count(*) FILTER (WHERE a.outcome IN ('FAILED', 'EXPIRED')),
            sum(greatest(0, extract(epoch FROM a.ended_at - a.started_at)::float8)), sum(a.device_seconds)"""


def _of_statement(function: str, rows: str, status: str) -> str:
    """Return a trigger's function that notes the tasks that a statement has created or removed."""
    before, now = ("status", "NULL::text") if status == "status_before" else ("NULL::text", "status")
    return f"""
    CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO task_changes
        SELECT tenant, origin_instance, coalesce(origin_zone, ''), task_type, provider_type,
            date_trunc('minute', created_at), {before}, {now}, count(*), '', '', NULL, 0, 0, 0
        FROM {rows} WHERE kind = 'TASK' AND NOT is_deleted GROUP BY 1, 2, 3, 4, 5, 6, status;
        RETURN NULL;
    END $$
    """  # noqa: S608 -- constants


STATEMENTS = (
    # `tasks` tasks are in `status` that were in `status_before`: null where they were not counted before, or are no
    # longer. From `queue_name` on: what that means to the flow through queues, in `minute`.
    """
    CREATE TABLE task_changes (
        tenant text NOT NULL,
        origin_instance text NOT NULL,
        origin_zone text NOT NULL,
        task_type text NOT NULL,
        provider_type text NOT NULL,
        created_minute timestamptz NOT NULL,
        status_before text,
        status text,
        tasks integer NOT NULL,
        queue_name text NOT NULL,
        worker text NOT NULL,
        minute timestamptz,
        started integer NOT NULL,
        waited_ms double precision NOT NULL,
        completed integer NOT NULL
    )
    """,
    "DROP TRIGGER count_new_tasks ON tasks",
    "DROP TRIGGER count_changed_tasks ON tasks",
    "DROP TRIGGER count_removed_tasks ON tasks",
    "DROP TRIGGER count_queue_flow ON tasks",
    "DROP FUNCTION note_task_counts()",
    "DROP FUNCTION note_queue_flow()",
    """
    WITH taken AS (DELETE FROM task_count_changes RETURNING *)
    INSERT INTO task_changes
    SELECT tenant, origin_instance, origin_zone, task_type, provider_type, created_minute,
        CASE WHEN tasks < 0 THEN status END, CASE WHEN tasks > 0 THEN status END, abs(tasks), '', '', NULL, 0, 0, 0
    FROM taken
    """,
    """
    WITH taken AS (DELETE FROM queue_flow_changes RETURNING *)
    INSERT INTO task_changes
    SELECT tenant, '', '', '', '', minute, NULL, NULL, 0, queue_name, worker, minute, started, waited_ms, completed
    FROM taken
    """,
    _of_statement("note_new_tasks", "added", "status"),
    _of_statement("note_removed_tasks", "removed", "status_before"),
    # Where more than the state changes, the task leaves one place and enters another: two rows.
    f"""
    CREATE FUNCTION note_changed_task() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        before text := CASE WHEN OLD.kind = 'TASK' AND NOT OLD.is_deleted THEN OLD.status END;
        now_ text := CASE WHEN NEW.kind = 'TASK' AND NOT NEW.is_deleted THEN NEW.status END;
        starts boolean := OLD.started_at IS NULL AND NEW.started_at IS NOT NULL;
        completes boolean := OLD.status <> 'COMPLETED' AND NEW.status = 'COMPLETED';
    BEGIN
        IF before IS NOT NULL AND (now_ IS NULL OR (OLD.provider_type, OLD.origin_instance, OLD.origin_zone)
            IS DISTINCT FROM (NEW.provider_type, NEW.origin_instance, NEW.origin_zone)) THEN
            INSERT INTO task_changes VALUES ({_DIMENSIONS.format(of="OLD")}, before, NULL, 1, '', '', NULL, 0, 0, 0);
            before := NULL;
        END IF;
        IF now_ IS NOT NULL OR starts OR completes THEN
            INSERT INTO task_changes VALUES ({_DIMENSIONS.format(of="NEW")}, before, now_, 1, NEW.queue_name,
                coalesce(NEW.executor_instance, ''),
                date_trunc('minute', CASE WHEN completes THEN NEW.completed_at WHEN starts THEN NEW.started_at END),
                starts::integer, CASE WHEN starts
                    THEN greatest(0, extract(epoch FROM NEW.started_at - NEW.created_at)::float8 * 1000) ELSE 0 END,
                completes::integer);
        END IF;
        RETURN NULL;
    END $$
    """,  # noqa: S608 -- constants
    """
    CREATE TRIGGER count_new_tasks AFTER INSERT ON tasks REFERENCING NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION note_new_tasks()
    """,
    """
    CREATE TRIGGER count_removed_tasks AFTER DELETE ON tasks REFERENCING OLD TABLE AS removed
        FOR EACH STATEMENT EXECUTE FUNCTION note_removed_tasks()
    """,
    # Of each row: a trigger of statements would be handed every task that tells of its progress.
    """
    CREATE TRIGGER count_changed_tasks
        AFTER UPDATE OF status, provider_type, origin_instance, origin_zone, is_deleted ON tasks FOR EACH ROW
        WHEN ((OLD.status, OLD.provider_type, OLD.origin_instance, OLD.origin_zone, OLD.is_deleted)
            IS DISTINCT FROM (NEW.status, NEW.provider_type, NEW.origin_instance, NEW.origin_zone, NEW.is_deleted))
        EXECUTE FUNCTION note_changed_task()
    """,
    _ENDED.format(counted=_TOGETHER, grouped="GROUP BY 1, 2, 3, 4, 5, 6"),
)

# As revision 0013 made them.
REVERSE = (
    _ENDED.format(counted=_EACH, grouped=""),
    "DROP TRIGGER count_changed_tasks ON tasks",
    "DROP TRIGGER count_removed_tasks ON tasks",
    "DROP TRIGGER count_new_tasks ON tasks",
    "DROP FUNCTION note_changed_task()",
    "DROP FUNCTION note_removed_tasks()",
    "DROP FUNCTION note_new_tasks()",
    """
    INSERT INTO task_count_changes
    SELECT tenant, origin_instance, origin_zone, task_type, provider_type, v.status, created_minute, v.tasks
    FROM task_changes CROSS JOIN LATERAL (VALUES (status, tasks), (status_before, -tasks)) v (status, tasks)
    WHERE v.status IS NOT NULL
    """,
    """
    INSERT INTO queue_flow_changes
    SELECT queue_name, tenant, worker, minute, started, waited_ms, completed FROM task_changes WHERE minute IS NOT NULL
    """,
    "DROP TABLE task_changes",
    """
    CREATE FUNCTION note_task_counts() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP <> 'INSERT' AND NOT OLD.is_deleted THEN
            INSERT INTO task_count_changes VALUES (OLD.tenant, OLD.origin_instance, coalesce(OLD.origin_zone, ''),
                OLD.task_type, OLD.provider_type, OLD.status, date_trunc('minute', OLD.created_at), -1);
        END IF;
        IF TG_OP <> 'DELETE' AND NOT NEW.is_deleted THEN
            INSERT INTO task_count_changes VALUES (NEW.tenant, NEW.origin_instance, coalesce(NEW.origin_zone, ''),
                NEW.task_type, NEW.provider_type, NEW.status, date_trunc('minute', NEW.created_at), 1);
        END IF;
        RETURN NULL;
    END $$
    """,
    """
    CREATE FUNCTION note_queue_flow() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF OLD.started_at IS NULL AND NEW.started_at IS NOT NULL THEN
            INSERT INTO queue_flow_changes VALUES (NEW.queue_name, NEW.tenant, coalesce(NEW.executor_instance, ''),
                date_trunc('minute', NEW.started_at), 1,
                greatest(0, extract(epoch FROM NEW.started_at - NEW.created_at) * 1000), 0);
        END IF;
        IF OLD.status <> 'COMPLETED' AND NEW.status = 'COMPLETED' THEN
            INSERT INTO queue_flow_changes VALUES (NEW.queue_name, NEW.tenant, coalesce(NEW.executor_instance, ''),
                date_trunc('minute', NEW.completed_at), 0, 0, 1);
        END IF;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER count_new_tasks AFTER INSERT ON tasks FOR EACH ROW
        WHEN (NEW.kind = 'TASK') EXECUTE FUNCTION note_task_counts()
    """,
    """
    CREATE TRIGGER count_changed_tasks
        AFTER UPDATE OF status, provider_type, origin_instance, origin_zone, is_deleted ON tasks FOR EACH ROW
        WHEN (NEW.kind = 'TASK'
            AND (OLD.status, OLD.provider_type, OLD.origin_instance, OLD.origin_zone, OLD.is_deleted)
            IS DISTINCT FROM (NEW.status, NEW.provider_type, NEW.origin_instance, NEW.origin_zone, NEW.is_deleted))
        EXECUTE FUNCTION note_task_counts()
    """,
    """
    CREATE TRIGGER count_removed_tasks AFTER DELETE ON tasks FOR EACH ROW
        WHEN (OLD.kind = 'TASK') EXECUTE FUNCTION note_task_counts()
    """,
    """
    CREATE TRIGGER count_queue_flow AFTER UPDATE OF status ON tasks FOR EACH ROW
        WHEN (OLD.status IS DISTINCT FROM NEW.status AND NEW.status IN ('EXECUTING', 'COMPLETED'))
        EXECUTE FUNCTION note_queue_flow()
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    for statement in REVERSE:
        op.execute(statement)
