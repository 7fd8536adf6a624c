"""Follows a task on the terminal."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from atelier_cli.client import Gateway
from atelier_cli.errors import CliError
from atelier_cli.terminal import err


def follow(gateway: Gateway, task_id: str, title: str) -> dict[str, Any]:
    """Show a live bar until the task has ended, and return the ended task."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
    with bar:
        row = bar.add_task(title, total=100, state="waiting")
        last: dict[str, Any] = {}
        for event in gateway.watch(task_id):
            last = dict(event.task)
            state = str(last["status"]).lower()
            if event.step is not None and event.total_steps:
                bar.update(row, total=event.total_steps, completed=event.step)
                state = f"step {event.step} of {event.total_steps}"
            elif last.get("progress"):
                bar.update(row, total=100, completed=last["progress"])
            bar.update(row, state=state)
    return last


def require_completed(task: dict[str, Any]) -> None:
    """Raise unless the task has completed.

    Raises:
        CliError: It failed or was cancelled.
    """
    if task["status"] == "COMPLETED":
        return
    reasons = "; ".join(task.get("errors") or ()) or "no reason was given"
    what = "was cancelled" if task["status"] == "CANCELLED" else f"failed: {reasons}"
    raise CliError(f"Task {task['id']} {what}.")


@contextmanager
def cancelled_on_interrupt(gateway: Gateway, task_id: str) -> Iterator[None]:
    """Cancel the task on Ctrl-C (or SIGTERM) in the block: nobody waits for it any more."""

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 -- the signature of a signal handler
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        gateway.cancel(task_id)
        err.print(f"Task {task_id} was cancelled.")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
