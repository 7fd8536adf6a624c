"""Note what a statement changes in one pass, and index by the time of creation alone only tasks that ended.

The triggers' settings are those of the statement that fires them, and hot statements forbid hash joins: each row of a
statement was then compared with each other one. The settings of the function are its own.

Of all tenants, tasks that have not ended stand in `tasks_unended` in the same order as in the index of all tasks, into
which each change of a task's state wrote another entry.
"""

from alembic import op

from meshkit.migration import beside_writers

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

_COMPLETES = "(o.status <> 'COMPLETED' AND n.status = 'COMPLETED')"
_STARTS = "(o.started_at IS NULL AND n.started_at IS NOT NULL)"
# Where only the state changes, a task leaves one place and enters another in one row; where more does, in two.
_NOTE = f"""
CREATE OR REPLACE FUNCTION note_changed_tasks() RETURNS trigger LANGUAGE plpgsql
SET enable_hashjoin TO on SET enable_nestloop TO off AS $$
BEGIN
    INSERT INTO task_changes
    SELECT c.tenant, r.origin_instance, r.origin_zone, c.task_type, r.provider_type, c.created_minute,
        r.status_before, r.status, c.tasks, r.queue_name, r.worker, r.minute, r.started, r.waited_ms, r.completed
    FROM (
        SELECT n.tenant, n.task_type, date_trunc('minute', n.created_at) AS created_minute, n.queue_name,
            o.provider_type AS provider_before, o.origin_instance AS instance_before,
            coalesce(o.origin_zone, '') AS zone_before,
            n.provider_type, n.origin_instance, coalesce(n.origin_zone, '') AS origin_zone,
            CASE WHEN o.kind = 'TASK' AND NOT o.is_deleted THEN o.status END AS status_before,
            CASE WHEN n.kind = 'TASK' AND NOT n.is_deleted THEN n.status END AS status,
            n.is_deleted OR (o.provider_type, o.origin_instance, o.origin_zone)
                IS DISTINCT FROM (n.provider_type, n.origin_instance, n.origin_zone) AS moves,
            coalesce(n.executor_instance, '') AS worker,
            date_trunc('minute', CASE WHEN {_COMPLETES} THEN n.completed_at WHEN {_STARTS} THEN n.started_at END)
                AS minute,
            count(*) AS tasks, count(*) FILTER (WHERE {_STARTS}) AS started,
            coalesce(sum(greatest(0, extract(epoch FROM n.started_at - n.created_at)::float8 * 1000))
                FILTER (WHERE {_STARTS}), 0) AS waited_ms,
            count(*) FILTER (WHERE {_COMPLETES}) AS completed
        FROM rows_before o JOIN rows_now n ON n.id = o.id
        WHERE (o.status, o.provider_type, o.origin_instance, o.origin_zone, o.is_deleted)
            IS DISTINCT FROM (n.status, n.provider_type, n.origin_instance, n.origin_zone, n.is_deleted)
        GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    ) c CROSS JOIN LATERAL (VALUES
        (c.instance_before, c.zone_before, c.provider_before, CASE WHEN c.moves THEN c.status_before END, NULL,
            '', '', NULL::timestamptz, 0, 0, 0),
        (c.origin_instance, c.origin_zone, c.provider_type, CASE WHEN NOT c.moves THEN c.status_before END, c.status,
            c.queue_name, c.worker, c.minute, c.started, c.waited_ms, c.completed)
    ) r (origin_instance, origin_zone, provider_type, status_before, status,
        queue_name, worker, minute, started, waited_ms, completed)
    WHERE coalesce(r.status_before, r.status) IS NOT NULL OR r.started > 0 OR r.completed > 0;
    RETURN NULL;
END $$
"""  # noqa: S608 -- constants
# As revision 0026 made it.
_NOTE_BEFORE = """
CREATE OR REPLACE FUNCTION note_changed_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
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

_OF_ALL = {"tasks_newest_of_all": "(created_at DESC, id DESC)"}
# A hidden task has ended, but for one that was queued again in the moment in which it was hidden.
_ENDED = {"tasks_ended": "(created_at DESC, id DESC) WHERE completed_at IS NOT NULL OR is_deleted"}


def upgrade() -> None:
    op.execute(_NOTE)
    _replace(_OF_ALL, _ENDED)


def downgrade() -> None:
    op.execute(_NOTE_BEFORE)
    _replace(_ENDED, _OF_ALL)


def _replace(old: dict[str, str], new: dict[str, str]) -> None:
    with beside_writers():
        for name, what in new.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")  # what a run left that was stopped
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON tasks {what}")
        for name in old:
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
