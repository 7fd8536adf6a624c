"""The supervisor starts again what dies, later each time, and stops in reverse."""

import errno
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from atelier_cli.embedded.process import Launch, StartError
from atelier_cli.errors import CliError
from atelier_cli.supervisor import LAST_BACKOFF_SECONDS, Managed, MeshSupervisor

_SLEEPER = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit()); time.sleep(600)"


@dataclass
class Program:
    """A process that runs a line of Python."""

    name: str
    folder: Path
    program: str = _SLEEPER
    answers: bool = True
    starts: int = 0

    def prepare(self) -> Launch:
        self.starts += 1
        return Launch(argv=(sys.executable, "-c", self.program), log=self.folder / f"{self.name}.log")

    def ready(self) -> bool:
        return self.answers


@dataclass
class Bench:
    """A supervisor whose clock a test turns."""

    stages: Sequence[Sequence[Program]]
    now: float = 0.0
    said: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.supervisor = MeshSupervisor(self.stages, self.states.append, self.said.append, clock=lambda: self.now)

    def die(self) -> None:
        """Waits until the one process has ended, and lets the supervisor see it."""
        process = self.supervisor._managed[0].process
        assert process is not None
        process.wait()
        self.supervisor.look_after("ready")


def test_pause_before_a_new_start_doubles_up_to_its_bound(tmp_path: Path) -> None:
    program = Program("p", tmp_path, "raise SystemExit(3)", answers=False)
    bench = Bench([[program]])
    bench.supervisor._managed = [Managed(program)]
    bench.supervisor.look_after("ready")
    pauses = []
    for _ in range(8):
        bench.die()
        managed = bench.supervisor._managed[0]
        pauses.append(managed.next_start_at - bench.now)
        bench.now = managed.next_start_at - 0.01
        bench.supervisor.look_after("ready")
        assert managed.process is None, "it started before its pause was over"
        bench.now = managed.next_start_at
        bench.supervisor.look_after("ready")
    assert pauses == [0.5, 1, 2, 4, 8, 16, LAST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS]
    assert "ended with code 3" in bench.said[0]
    bench.die()


def test_one_that_ran_long_starts_again_soon(tmp_path: Path) -> None:
    program = Program("p", tmp_path, "raise SystemExit(3)", answers=False)
    bench = Bench([[program]])
    managed = Managed(program)
    managed.backoff_seconds = 16.0
    bench.supervisor._managed = [managed]
    bench.supervisor.look_after("ready")
    bench.now = 61.0
    bench.die()
    assert managed.next_start_at == pytest.approx(61.5)


@pytest.mark.parametrize("error", [StartError("initdb failed"), OSError(errno.ENOSPC, "No space left on device")])
def test_restart_that_cannot_be_prepared_is_a_death_and_stops_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    program, neighbour = Program("p", tmp_path, "raise SystemExit(3)", answers=False), Program("n", tmp_path)
    bench = Bench([[program, neighbour]])
    managed, other = bench.supervisor._managed = [Managed(program), Managed(neighbour)]
    bench.supervisor.look_after("ready")
    bench.die()

    def full_disk() -> Launch:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(program, "prepare", full_disk)
        pauses = []
        for _ in range(8):
            bench.now = managed.next_start_at
            bench.supervisor.look_after("ready")
            pauses.append(managed.next_start_at - bench.now)
    assert pauses == [1, 2, 4, 8, 16, LAST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS]
    assert "could not be started: " in bench.said[-1]
    assert (managed.pid, managed.restarts) == (None, 9)
    assert other.process is not None
    assert other.process.poll() is None
    bench.now = managed.next_start_at
    bench.supervisor.look_after("ready")
    assert managed.pid is not None
    bench.die()
    bench.supervisor._stop_all()


def test_one_that_serves_no_more_is_started_again_once(tmp_path: Path) -> None:
    class Spent(Program):
        is_spent = False

        def spent(self) -> bool:
            return self.is_spent

    program = Spent("p", tmp_path)
    bench = Bench([[program]])
    managed = Managed(program)
    bench.supervisor._managed = [managed]
    bench.supervisor.look_after("ready")
    bench.supervisor.look_after("ready")
    assert (managed.ready, program.starts) == (True, 1)
    first = managed.process
    assert first is not None
    program.is_spent = True
    for _ in range(3):
        bench.supervisor.look_after("ready")
    assert sum("could not write" in line for line in bench.said) == 1
    bench.die()
    program.is_spent = False
    bench.now = managed.next_start_at
    bench.supervisor.look_after("ready")
    assert managed.process is not first
    assert program.starts == 2
    bench.supervisor._stop_all()


def test_state_that_cannot_be_written_is_told_once_and_written_later(tmp_path: Path) -> None:
    program = Program("p", tmp_path, answers=False)
    bench = Bench([[program]])
    full = True

    def changed(state: str) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device", "mesh.json")
        bench.states.append(state)

    bench.supervisor.changed = changed
    bench.supervisor._managed = [Managed(program)]
    for _ in range(3):
        bench.supervisor.look_after("ready")
    assert [line for line in bench.said if "No space left on device: mesh.json" in line] == bench.said
    assert len(bench.said) == 1
    assert bench.states == []
    full = False
    bench.supervisor.look_after("ready")
    bench.supervisor.look_after("ready")
    assert bench.states == ["ready"], "told again without anything new"
    full = True
    bench.supervisor._stop_all()
    assert bench.supervisor._managed[0].pid is None, "a state that cannot be written must not keep processes alive"


def test_first_start_that_cannot_be_prepared_is_told_in_a_sentence(tmp_path: Path) -> None:
    class Unmade(Program):
        def prepare(self) -> Launch:
            raise OSError(errno.ENOSPC, "No space left on device", "nats.conf")

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        with pytest.raises(CliError, match=r"No space left on device: nats\.conf"):
            MeshSupervisor([[Unmade("nats", tmp_path)]], lambda _: None, lambda _: None).run()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_stops_in_the_reverse_of_its_start_and_tells_every_state(tmp_path: Path) -> None:
    class First(Program):
        def prepare(self) -> Launch:
            states.append("prepared")
            return super().prepare()

    stages: list[list[Program]] = [
        [First("database", tmp_path)],
        [Program("service", tmp_path), Program("door", tmp_path)],
    ]
    said: list[str] = []
    states: list[str] = []

    def changed(state: str) -> None:
        states.append(state)
        if state == "ready":
            os.kill(os.getpid(), signal.SIGTERM)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        MeshSupervisor(stages, changed, said.append).run()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert [line.split()[1] for line in said if "stopped" in line] == ["door", "service", "database"]
    assert states[:2] == ["starting", "prepared"], "nobody is to be told of the last run's processes"
    assert states[-2:] == ["stopping", "stopped"]


def test_what_does_not_stop_in_its_time_is_killed(tmp_path: Path) -> None:
    class Stubborn(Program):
        def prepare(self) -> Launch:
            return replace(super().prepare(), stop_seconds=0.0)

    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    program = Stubborn("p", tmp_path, deaf)
    bench = Bench([[program]])
    managed = Managed(program)
    bench.supervisor._managed = [managed]
    bench.supervisor.look_after("ready")
    log, process = tmp_path / "p.log", managed.process
    until = time.monotonic() + 60
    while "deaf" not in log.read_text() and time.monotonic() < until:
        time.sleep(0.01)
    bench.supervisor.clock = time.monotonic
    bench.supervisor._stop_all()
    assert process is not None
    assert process.returncode == -signal.SIGKILL


def test_start_that_fails_again_and_again_is_told_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atelier_cli.supervisor.FIRST_BACKOFF_SECONDS", 0.01)
    program = Program("p", tmp_path, "print('no such port'); raise SystemExit(1)", answers=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        with pytest.raises(CliError, match=r"(?s)p ended \d times while it started.*no such port"):
            MeshSupervisor([[program]], lambda _: None, lambda _: None, clock=lambda: time.monotonic() * 20).run()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
