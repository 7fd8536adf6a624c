"""Count tasks and the flow through queues in the transaction of each change; serve lists by one filter; keep loads.

Triggers note every change, whoever makes it, as rows that nobody waits for: a counter itself would be one row that all
transactions of a tenant lock. A loop folds the notes into the counters; who reads adds what is not folded yet.
"""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# The order of filters' columns before the tenant's serves lists of one tenant and of all.
_FILTERS = ("status", "task_type", "provider_type", "origin_instance", "origin_zone")

STATEMENTS = (
    """
    CREATE TABLE task_count_changes (
        tenant text NOT NULL,
        origin_instance text NOT NULL,
        origin_zone text NOT NULL,
        task_type text NOT NULL,
        provider_type text NOT NULL,
        status text NOT NULL,
        created_minute timestamptz NOT NULL,
        tasks integer NOT NULL
    )
    """,
    """
    CREATE TABLE task_counts (
        tenant text NOT NULL,
        origin_instance text NOT NULL,
        origin_zone text NOT NULL,
        task_type text NOT NULL,
        provider_type text NOT NULL,
        status text NOT NULL,
        tasks bigint NOT NULL,
        PRIMARY KEY (tenant, origin_instance, origin_zone, task_type, provider_type, status)
    ) WITH (fillfactor = 50)
    """,
    """
    CREATE TABLE task_creations (
        created_minute timestamptz NOT NULL,
        tenant text NOT NULL,
        origin_instance text NOT NULL,
        origin_zone text NOT NULL,
        tasks bigint NOT NULL,
        PRIMARY KEY (created_minute, tenant, origin_instance, origin_zone)
    ) WITH (fillfactor = 50)
    """,
    """
    CREATE TABLE queue_flow_changes (
        queue_name text NOT NULL,
        tenant text NOT NULL,
        worker text NOT NULL,
        minute timestamptz NOT NULL,
        started integer NOT NULL,
        waited_ms double precision NOT NULL,
        completed integer NOT NULL
    )
    """,
    """
    CREATE TABLE queue_flow (
        minute timestamptz NOT NULL,
        queue_name text NOT NULL,
        tenant text NOT NULL,
        worker text NOT NULL,
        started bigint NOT NULL,
        waited_ms double precision NOT NULL,
        completed bigint NOT NULL,
        PRIMARY KEY (minute, queue_name, tenant, worker)
    ) WITH (fillfactor = 50)
    """,
    # Tasks that are hidden by a cleanup are in no list, and not counted.
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
    """
    INSERT INTO task_counts
    SELECT tenant, origin_instance, coalesce(origin_zone, ''), task_type, provider_type, status, count(*)
    FROM tasks WHERE kind = 'TASK' AND NOT is_deleted GROUP BY 1, 2, 3, 4, 5, 6
    """,
    """
    INSERT INTO task_creations
    SELECT date_trunc('minute', created_at), tenant, origin_instance, coalesce(origin_zone, ''), count(*)
    FROM tasks WHERE kind = 'TASK' AND NOT is_deleted AND created_at > now() - interval '25 hours' GROUP BY 1, 2, 3, 4
    """,
    *(
        f"CREATE INDEX tasks_by_{column} ON tasks ({column}, tenant, created_at DESC, id DESC) "
        "WHERE kind = 'TASK' AND NOT is_deleted"
        for column in _FILTERS
    ),
    # What a worker tells of itself in its heartbeats; null until it has.
    "ALTER TABLE sessions ADD COLUMN load jsonb",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("ALTER TABLE sessions DROP COLUMN load")
    for column in _FILTERS:
        op.execute(f"DROP INDEX tasks_by_{column}")
    for trigger in ("count_new_tasks", "count_changed_tasks", "count_removed_tasks", "count_queue_flow"):
        op.execute(f"DROP TRIGGER {trigger} ON tasks")
    for function in ("note_task_counts", "note_queue_flow"):
        op.execute(f"DROP FUNCTION {function}()")
    for table in ("queue_flow", "queue_flow_changes", "task_creations", "task_counts", "task_count_changes"):
        op.execute(f"DROP TABLE {table}")
