"""Run a part in a process of its own, within a bound of time.

A part that crashes, hangs or runs out of memory ends its process and nothing else, and the device's memory is free for
the next one. Processes come from a fork server. On a CPU it has imported torch already, which saves seconds a part.
With CUDA it imports nothing, because a process that has touched CUDA must not be forked.

A part ends with whoever runs it. The kernel could have it end with the process that forked it alone
(`meshkit.children.die_with_parent`), and a fork server stays for as long as one of its parts does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection

from bench.gpu.parts import Part, load
from bench.gpu.setting import Figure, PartError, Setting

_CONTEXT = multiprocessing.get_context("forkserver")
_LONGEST_ERROR = 300


@dataclass(frozen=True, slots=True)
class _Ended:
    """The last message of a part's process; `error` is empty where all went well."""

    error: str = ""


@dataclass(slots=True)
class Outcome:
    """What came of a part.

    Attributes:
        part: Its name.
        figures: What it measured, up to its end.
        error: Why it failed; empty where it did not.
        seconds: How long it took.
    """

    part: str
    figures: list[Figure] = field(default_factory=list)
    error: str = ""
    seconds: float = 0.0


def preload(*modules: str) -> None:
    """Start the fork server and have it import modules; without effect once it runs."""
    _CONTEXT.set_forkserver_preload(list(modules))
    forkserver.ensure_running()


def run(part: Part, setting: Setting, seconds: float, on_figure: Callable[[Figure], None]) -> Outcome:
    """Run a part; what goes wrong in it stands in the outcome.

    Args:
        part: The part.
        setting: What it is given.
        seconds: After how long its process is killed.
        on_figure: Called with each figure as soon as it is measured.
    """
    outcome = Outcome(part.name)
    begun = time.monotonic()
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_work, args=(part.entry, setting, theirs), name=part.name)
    process.start()
    theirs.close()
    try:
        while True:
            if not ours.poll(max(begun + seconds - time.monotonic(), 0.0)):
                outcome.error = f"It had not ended after {seconds:.0f} s."
                break
            try:
                message = ours.recv()
            except EOFError:
                process.join()
                outcome.error = f"Its process ended with status {process.exitcode}."
                break
            if isinstance(message, _Ended):
                outcome.error = message.error
                process.join(max(begun + seconds - time.monotonic(), 1.0))
                break
            outcome.figures.append(message)
            on_figure(message)
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()
    outcome.seconds = time.monotonic() - begun
    return outcome


def _work(entry: str, setting: Setting, answers: Connection) -> None:
    """Measure, in the part's process."""
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    error = ""
    try:
        for figure in load(entry)(setting):
            answers.send(figure)
    except PartError as found:
        error = str(found)
    except Exception as found:  # whatever a library raises becomes a line of the table
        traceback.print_exc()
        error = f"{type(found).__name__}: {found}"
    answers.send(_Ended(" ".join(error.split())[:_LONGEST_ERROR]))
    answers.close()


def _end_with_parent() -> None:
    """Kill this process once the one that started it has ended, in whatever it is."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a part runs in a process of its own"
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
