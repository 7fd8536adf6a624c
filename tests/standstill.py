"""Stops a process while it holds something of PostgreSQL's, as a machine that hangs at the wrong moment would."""

import contextlib
import random
import signal
import time

import psutil
import psycopg

# The row of a queue that rounds of other replicas wait for.
IN_A_ROUND = """
SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.relation = 'tasks.queues'::regclass AND a.client_port = ANY(%s) AND a.wait_event = 'ClientRead'
"""
# Something that was changed and is not committed.
IN_A_CHANGE = """
SELECT count(*) FROM pg_stat_activity
WHERE client_port = ANY(%s) AND backend_xid IS NOT NULL AND wait_event = 'ClientRead'
"""


def stand_still(pid: int, dsn: str, holds: str, seconds: float = 60.0) -> None:
    """Stop a process at a moment at which one of its connections holds what a query counts; it has to be at work.

    Args:
        pid: The process; it goes on by SIGCONT.
        dsn: Its database.
        holds: `IN_A_ROUND` or `IN_A_CHANGE`.
        seconds: How long to try.

    Raises:
        TimeoutError: It was never seen to hold it.
    """
    process = psutil.Process(pid)
    deadline = time.monotonic() + seconds
    with psycopg.connect(dsn, autocommit=True) as connection:
        while time.monotonic() < deadline:
            process.send_signal(signal.SIGSTOP)
            ports = [each.laddr.port for each in process.net_connections() if each.raddr]
            row = connection.execute(holds, (ports,)).fetchone()
            if row is not None and row[0]:
                return
            process.send_signal(signal.SIGCONT)
            time.sleep(random.uniform(0.005, 0.05))
    with contextlib.suppress(psutil.Error):
        process.send_signal(signal.SIGCONT)
    message = f"process {pid} held nothing within {seconds:.0f} s"
    raise TimeoutError(message)
