"""Follows tasks on the terminal."""

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from atelier_cli.client import Gateway, TaskProgress
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.folder import DataFolder
from atelier_cli.terminal import err
from atelier_cli.tokens import DEFAULT_TENANT

# Streams held at once. Tasks begin in the order of their creation, so that those behind are only waiting.
_FOLLOWED_AT_ONCE: Final = 8
# More bars than this hide what they show: one line counts instead.
_MOST_BARS: Final = 12

# Steps fill so much of a bar, in percent: upscaling and storing come after them.
_STEPS_SHARE: Final = 90
_REACHED: Final = {"UPSCALING": 92, "STORING": 97}
_PHASES: Final = {
    "QUEUED": "queued",
    "LOADING_MODEL": "loading the model",
    "UPSCALING": "upscaling",
    "STORING": "storing",
}
# The mesh counts no further.
_MOST_AHEAD: Final = 100


def follow(gateway: Gateway, task_id: str, title: str) -> dict[str, Any]:
    """Show a live bar until the task has ended, and return the ended task."""
    last: dict[str, Any] = {}
    with _bars() as bars:
        bar = TaskBar(bars, title)
        for event in gateway.watch(task_id):
            last = dict(event.task)
            bar.show(event)
    return last


def follow_all(
    gateway: Callable[[], Gateway],
    titles: dict[str, str],
    ended: Callable[[Gateway, dict[str, Any]], None],
    *,
    on_text: Callable[[str, str], None] | None = None,
) -> None:
    """Follow tasks until all have ended: a bar for each, or one line for many.

    Args:
        gateway: Returns a new client, for a follower of its own.
        titles: Texts of the bars, by task identifier.
        ended: Called with each ended task, on its follower's thread.
        on_text: Called with a task's identifier and its text so far, where the result is text.

    Raises:
        CliError: One could not be followed, or `ended` raised it.
    """
    with _bars() as bars:
        many = len(titles) > _MOST_BARS
        line = bars.add_task(f"{len(titles)} tasks", total=len(titles), state="0 done") if many else None
        rows = {} if many else {each: TaskBar(bars, title) for each, title in titles.items()}

        def one(task_id: str) -> None:
            last: dict[str, Any] = {}
            with gateway() as client:
                for event in client.watch(task_id):
                    last = dict(event.task)
                    if on_text is not None and event.text:
                        # The text takes the place of the bar.
                        bars.stop()
                        on_text(task_id, event.text)
                    elif task_id in rows:
                        rows[task_id].show(event)
                ended(client, last)
            if line is not None:
                bars.advance(line)
                bars.update(line, state=f"{bars.tasks[0].completed:.0f} done")

        pool = ThreadPoolExecutor(_FOLLOWED_AT_ONCE)
        try:
            for done in [pool.submit(one, task_id) for task_id in titles]:
                done.result()
        finally:
            # Not awaited: after Ctrl-C the caller cancels the tasks, which ends the followers.
            pool.shutdown(wait=False, cancel_futures=True)


class TaskBar:
    """The bar of one task.

    Args:
        bars: Where it stands.
        title: The text before it.
    """

    def __init__(self, bars: Progress, title: str) -> None:
        self._bars = bars
        self._row = bars.add_task(title, total=100, state="waiting")

    def show(self, event: TaskProgress) -> None:
        """Show how far the task is."""
        state = _PHASES.get(event.phase or "") or str(event.task["status"]).lower()
        completed: float | None = _REACHED.get(event.phase or "")
        if event.phase == "QUEUED" and event.tasks_ahead:
            state = f"queued, {event.tasks_ahead}{'+' if event.tasks_ahead >= _MOST_AHEAD else ''} ahead"
        elif completed is None and event.step is not None and event.total_steps:
            completed = _STEPS_SHARE * event.step / event.total_steps
            state = f"step {event.step} of {event.total_steps}"
        elif completed is None and event.task.get("progress"):
            completed = _STEPS_SHARE * event.task["progress"] / 100
        if event.task["status"] == "COMPLETED":
            completed = 100
        self._bars.update(self._row, state=state, completed=completed)


def require_completed(task: dict[str, Any]) -> None:
    """Raise unless the task has completed.

    Raises:
        CliError: It failed or was cancelled.
    """
    if task["status"] == "COMPLETED":
        return
    reasons = "; ".join(task.get("errors") or ()) or "no reason was given"
    what = "was cancelled" if task["status"] == "CANCELLED" else f"failed: {reasons.rstrip('.')}"
    raise CliError(f"Task {task['id']} {what}.")


def tell_warnings(task: dict[str, Any]) -> None:
    """Show what the mesh says of a result beside the result itself."""
    for warning in task.get("warnings") or ():
        err.print(f"Warning: {warning}", markup=False)


@contextmanager
def cancelled_on_interrupt(gateway: Gateway, task_ids: Sequence[str]) -> Iterator[None]:
    """Cancel tasks on Ctrl-C (or SIGTERM) in the block: nobody waits for them any more.

    Args:
        gateway: Where they are cancelled.
        task_ids: The tasks; read when it comes to that.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 -- the signature of a signal handler
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        for task_id in cancel_all(gateway, task_ids):
            err.print(f"Task {task_id} was cancelled. Make it again: atelier retry {task_id}", markup=False)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def cancel_all(gateway: Gateway, task_ids: Sequence[str]) -> list[str]:
    """Cancel tasks and return those that are; what has ended stays as it is.

    Raises:
        CliError: The gateway cannot be reached, or forbids it.
    """
    cancelled = []
    for task_id in task_ids:
        try:
            gateway.cancel(task_id)
        except CliError as error:
            if error.code is not ExitCode.FAILED:
                raise
        else:
            cancelled.append(task_id)
    return cancelled


@contextmanager
def told_on_interrupt(what: str, again: str) -> Iterator[None]:
    """Say on Ctrl-C in the block that what was followed goes on, and how to follow it again."""
    try:
        yield
    except KeyboardInterrupt:
        err.print(f"{what} goes on. Follow it again: {again}", markup=False)
        raise


def command(words: str, tenant: str, folder: DataFolder) -> str:
    """Return a command of `atelier` for the same tenant and mesh, as the user would type it."""
    of = f" --tenant {tenant}" if tenant != DEFAULT_TENANT else ""
    on = f" --data {folder}" if folder.path != DataFolder.choose(None).path else ""
    return f"atelier {words}{of}{on}"


def _bars() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
