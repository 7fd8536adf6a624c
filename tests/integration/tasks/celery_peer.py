"""A real Celery worker, told to run a task, hold another and wait with a third; writes down what its `inspect` answers.

With the pool `prefork` it holds none: over a broker in memory a pool of processes takes a task only once one is free.
"""

import json
import sys
import time
from pathlib import Path

from celery import Celery
from celery.contrib.testing.worker import start_worker

_ANSWERS = ("active", "scheduled", "reserved", "revoked", "stats")
_SECONDS = 120
_folder = Path(sys.argv[2])
_running, _ending = _folder / "running", _folder / "ending"

app = Celery("peer", broker="memory://", backend="cache+memory://")
app.conf.worker_prefetch_multiplier = 4


def work() -> None:
    """Take until it is told to end, in whatever process."""
    _running.touch()
    while not _ending.exists():
        time.sleep(0.05)


task = app.task(work, name="peer.work")


def main(pool: str) -> None:
    """Write down the answers of one worker."""
    deadline = time.monotonic() + _SECONDS
    wanted = {"active", "scheduled"} | ({"reserved"} if pool == "threads" else set())
    with start_worker(app, pool=pool, concurrency=1, perform_ping_check=False, shutdown_timeout=60) as started:
        try:
            task.delay()
            while not _running.exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            if pool == "threads":
                task.delay()
            task.apply_async(countdown=3600)
            control = app.control.inspect(timeout=2)
            while True:
                answers = {name: getattr(control, name)() for name in _ANSWERS}
                if all(answers.values()) and all(answers[name][started.hostname] for name in wanted):
                    break
                assert time.monotonic() < deadline, answers
            told = {name: answer[started.hostname] for name, answer in answers.items()}
            (_folder / "answers.json").write_text(json.dumps(told), encoding="utf-8")
        finally:
            _ending.touch()


if __name__ == "__main__":
    main(sys.argv[1])
