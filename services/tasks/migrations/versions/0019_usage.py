"""Count what attempts and calls of providers use, by day, tenant, type, provider, model and device.

Notes are made in the transaction of the change, as rows that nobody waits for; a loop adds them up, and who reads adds
what is not added up yet. What attempts use is noted by triggers, so that no way to end one is forgotten.
"""

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

# A note of an attempt, as a row of `usage_changes`. The task's provider may have changed since the attempt: its
# fallback took over.
_NOTE = """
    (a.ended_at AT TIME ZONE 'UTC')::date, t.tenant, CASE WHEN t.kind = 'TASK' THEN t.task_type ELSE t.kind END,
    coalesce(a.provider_type, t.provider_type), a.model, split_part(a.device, ':', 1), '',
    {sign}, {sign} * (a.outcome IN ('FAILED', 'EXPIRED'))::integer,
    {sign} * greatest(0, extract(epoch FROM a.ended_at - a.started_at)), {sign} * a.device_seconds, 0, 0, 0, 0
"""
# An attempt that was handed back before it began is none.
_COUNTS = "a.outcome IS NOT NULL AND a.outcome <> 'RELEASED'"

STATEMENTS = (
    # `currency` is that of `cost`, and empty where there is none; `device` is without its number.
    """
    CREATE TABLE usage_days (
        day date NOT NULL,
        tenant text NOT NULL,
        task_type text NOT NULL,
        provider_type text NOT NULL,
        model text NOT NULL,
        device text NOT NULL,
        currency text NOT NULL,
        attempts bigint NOT NULL,
        failed_attempts bigint NOT NULL,
        run_seconds double precision NOT NULL,
        device_seconds double precision NOT NULL,
        calls bigint NOT NULL,
        failed_calls bigint NOT NULL,
        call_seconds double precision NOT NULL,
        cost double precision NOT NULL,
        PRIMARY KEY (day, tenant, task_type, provider_type, model, device, currency)
    ) WITH (fillfactor = 50)
    """,
    "CREATE TABLE usage_changes (LIKE usage_days)",
    # What lay in storage when a day was last measured.
    """
    CREATE TABLE stored_days (
        day date NOT NULL,
        tenant text NOT NULL,
        task_type text NOT NULL,
        model text NOT NULL,
        objects bigint NOT NULL,
        bytes bigint NOT NULL,
        PRIMARY KEY (day, tenant, task_type, model)
    )
    """,
    "CREATE TABLE stored_measures (tenant text PRIMARY KEY, measured_at timestamptz NOT NULL)",
    """
    ALTER TABLE attempts
        ADD COLUMN provider_type text, ADD COLUMN device text NOT NULL DEFAULT '',
        ADD COLUMN model text NOT NULL DEFAULT ''
    """,
    # Tasks are looked up one by one: planned for no statistics, a join might read them all.
    f"""
    CREATE FUNCTION note_ended_attempts() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO usage_changes SELECT {_NOTE.format(sign=1)}
        FROM added a CROSS JOIN LATERAL (
            SELECT kind, tenant, task_type, provider_type FROM tasks WHERE id = a.task_id OFFSET 0) t
        WHERE {_COUNTS};
        RETURN NULL;
    END $$
    """,  # noqa: S608 -- constants
    # An attempt that a replica of an earlier release began has a row already; one that was cancelled may tell later
    # what it used.
    f"""
    CREATE FUNCTION note_changed_attempt() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO usage_changes SELECT {_NOTE.format(sign=-1)}
        FROM (SELECT OLD.*) a JOIN tasks t ON t.id = a.task_id WHERE {_COUNTS};
        INSERT INTO usage_changes SELECT {_NOTE.format(sign=1)}
        FROM (SELECT NEW.*) a JOIN tasks t ON t.id = a.task_id WHERE {_COUNTS};
        RETURN NULL;
    END $$
    """,  # noqa: S608 -- constants
    """
    CREATE TRIGGER count_ended_attempts AFTER INSERT ON attempts REFERENCING NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION note_ended_attempts()
    """,
    """
    CREATE TRIGGER count_changed_attempts AFTER UPDATE OF outcome, device_seconds ON attempts FOR EACH ROW
        WHEN ((OLD.outcome, OLD.device_seconds) IS DISTINCT FROM (NEW.outcome, NEW.device_seconds))
        EXECUTE FUNCTION note_changed_attempt()
    """,
    f"""
    INSERT INTO usage_days SELECT day, tenant, task_type, provider_type, model, device, currency, sum(attempts),
        sum(failed_attempts), sum(run_seconds), sum(device_seconds), 0, 0, 0, 0
    FROM (SELECT {_NOTE.format(sign=1)} FROM attempts a JOIN tasks t ON t.id = a.task_id WHERE {_COUNTS}) n (
        day, tenant, task_type, provider_type, model, device, currency, attempts, failed_attempts, run_seconds,
        device_seconds, calls, failed_calls, call_seconds, cost)
    GROUP BY 1, 2, 3, 4, 5, 6, 7
    """,  # noqa: S608 -- constants
    # What was asked for of providers so far is known by provider alone.
    """
    INSERT INTO usage_days
    SELECT day, tenant, '', provider_type, '', '', currency, 0, 0, 0, 0, calls, failed_calls, seconds, cost
    FROM provider_usage
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TRIGGER count_ended_attempts ON attempts")
    op.execute("DROP TRIGGER count_changed_attempts ON attempts")
    for function in ("note_ended_attempts", "note_changed_attempt"):
        op.execute(f"DROP FUNCTION {function}()")
    op.execute("ALTER TABLE attempts DROP COLUMN provider_type, DROP COLUMN device, DROP COLUMN model")
    for table in ("stored_measures", "stored_days", "usage_changes", "usage_days"):
        op.execute(f"DROP TABLE {table}")
