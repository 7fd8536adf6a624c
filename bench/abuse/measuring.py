"""Runs one row, measures memory and waits meanwhile, and prints the line of the table."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil

from bench.abuse.rows import Abuse, MisuseRow
from tests.e2e.harness import RunningMesh

_ROLES = ("gateway", "tasks", "workflows", "worker")
_MAX_PARENT_MB = 300
_TIMES_IDLE = 3.0
# Below this a wait is too short to be told from the noise of a busy machine.
_LEAST_WAIT_SECONDS = 0.5
_IDLE_PROBES = 5

HEAD = """
| what was done | answers | most grown | before, MB | peak | after | idle wait, s | wait (longest) | |
|---|---|---|---|---|---|---|---|---|
""".strip()


@dataclass
class MemoryWatch:
    """Memory of each service, its children apart, in MB."""

    mesh: RunningMesh
    peak: dict[str, int] = field(default_factory=dict)

    def now(self) -> dict[str, int]:
        """Measure, and keep the peak."""
        found: dict[str, int] = {}
        for one in self.mesh.record.processes:
            if one.role not in _ROLES or one.pid is None:
                continue
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(one.pid)
                found[one.role] = process.memory_info().rss >> 20
                children = sum(_resident(each) for each in process.children(recursive=True))
                found[f"{one.role}'s children"] = children >> 20
        for name, used in found.items():
            self.peak[name] = max(self.peak.get(name, 0), used)
        return found


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


@contextlib.contextmanager
def repeating(act: Callable[[], object], pause_seconds: float) -> Iterator[None]:
    """Do something again and again in a thread, until the block ends."""
    ends = threading.Event()

    def repeat() -> None:
        while not ends.is_set():
            act()
            ends.wait(pause_seconds)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


def measure(one: MisuseRow, abuse: Abuse, rest_seconds: float) -> bool:
    """Run one row and print it; return whether it came out right."""
    other = abuse.other
    other.patient = one.longest is not None
    with contextlib.ExitStack() as stack:
        if one.door is not None:
            other.url = stack.enter_context(one.door(abuse))
        for _ in range(_IDLE_PROBES):
            other.once(one.probe)
        idle = statistics.median(other.waits)
        other.forget()
        memory = MemoryWatch(abuse.mesh)
        before = memory.now()
        with repeating(memory.now, 0.1), repeating(lambda: other.once(one.probe), 0.1):
            one.act(abuse)
        time.sleep(rest_seconds)
        after = memory.now()
    wait, longest = statistics.median(other.waits), max(other.waits)
    grown = max(memory.peak, key=lambda name: memory.peak[name] - before.get(name, 0))
    wrong = [
        *(f"{name} at {memory.peak.get(name, 0)} MB" for name in _ROLES if memory.peak.get(name, 0) > _MAX_PARENT_MB),
        *(f"gone: {name}" for name in _ROLES if name not in after),
        *(f"{count} probes: {what}" for what, count in other.failures.items()),
        *abuse.wrong,
    ]
    if one.longest is None and wait > max(_TIMES_IDLE * idle, _LEAST_WAIT_SECONDS):
        wrong.append("wait")
    if one.longest is not None and longest > one.longest:
        wrong.append(f"a wait of more than {one.longest:g} s")
    answers = [f"{what} x{count}" for what, count in sorted(abuse.answers.items())]
    print(
        f"| {one.name} | {', '.join(answers + abuse.found)} | {grown} | {before.get(grown, 0)} | {memory.peak[grown]}"
        f" | {after.get(grown, 0)} | {idle:.2f} | {wait:.2f} ({longest:.2f}) | {'; '.join(wrong) or 'right'} |",
        flush=True,
    )
    return not wrong
