"""Keeps the processes of one mesh running.

One thread does everything: it starts processes (which die with this thread, see `embedded.process`), checks them ten
times a second, restarts those that died, and stops them in reverse order of their start.
"""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from subprocess import Popen
from types import FrameType
from typing import Final

from rich.markup import escape

from atelier_cli.embedded.process import Exhaustible, Launch, Server, StartError, log_tail, spawn
from atelier_cli.errors import CliError
from atelier_cli.folder import ProcessRecord

_TICK_SECONDS: Final = 0.1
FIRST_BACKOFF_SECONDS: Final = 0.5
LAST_BACKOFF_SECONDS: Final = 30.0
# A process that ran this long did not fail at its start: its backoff begins anew.
_SETTLED_SECONDS: Final = 60.0
_READY_TIMEOUT_SECONDS: Final = 120.0
# While the mesh starts, a process that keeps dying ends the start; later it is retried for ever.
_DEATHS_AT_START: Final = 4


@dataclass(slots=True)
class Managed:
    """One process under supervision."""

    server: Server
    process: Popen[bytes] | None = None
    launch: Launch | None = None
    ready: bool = False
    restarts: int = 0
    started_at: float = 0.0
    next_start_at: float = 0.0
    backoff_seconds: float = FIRST_BACKOFF_SECONDS
    announced: bool = False
    renewed: bool = False

    @property
    def pid(self) -> int | None:
        """Its process id; None while it is down."""
        return self.process.pid if self.process else None

    def record(self) -> ProcessRecord:
        """Return what `mesh.json` shows of it."""
        return ProcessRecord(self.server.name, self.server.name, self.pid, self.restarts)


@dataclass(slots=True)
class MeshSupervisor:
    """Runs stages of processes until it is asked to stop.

    Attributes:
        stages: The processes; those of one stage start together, once the stage before is ready.
        changed: Called with the state's name whenever `mesh.json` has to change.
        say: Shows one line to the user.
        clock: Seconds, monotonic.
    """

    stages: Sequence[Sequence[Server]]
    changed: Callable[[str], None]
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    _managed: list[Managed] = field(default_factory=list)
    _signals: int = 0
    _untold: bool = False

    def records(self) -> tuple[ProcessRecord, ...]:
        """All processes that were started."""
        return tuple(each.record() for each in self._managed)

    def run(self) -> None:
        """Start all processes, supervise them until SIGTERM or SIGINT, and stop them.

        Raises:
            CliError: Something could not be started at the start, or did not become ready.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        try:
            began = self.clock()
            # Before the first preparation, which may take seconds: until then `mesh.json` has the last run's ids.
            self._tell("starting")
            if all(self._start_stage(stage) for stage in self.stages):
                self.say(f"[bold]The mesh is ready[/bold] after {self.clock() - began:.1f} s.")
                self._tell("ready")
            while not self._signals:
                self.look_after("ready")
                time.sleep(_TICK_SECONDS)
        except (StartError, OSError) as error:
            raise CliError(_sentence(error)) from error
        finally:
            self._stop_all()

    def look_after(self, state: str) -> None:
        """Run one round: restart what died, record what became ready."""
        if self._untold:
            self._tell(state)
        for each in self._managed:
            if each.process is None:
                if self.clock() >= each.next_start_at:
                    self._start_again(each)
                    self._tell(state)
            elif each.process.poll() is not None:
                self._note_death(each, _cause(each.process.returncode))
                self._tell(state)
            elif not each.ready and each.server.ready():
                each.ready = True
                took = self.clock() - each.started_at
                again = "again " if each.announced else ""
                each.announced = True
                self.say(f"[green]●[/green] {each.server.name:9s} {again}ready in {took:.1f} s")
                self._tell(state)
            elif each.ready and not each.renewed and isinstance(each.server, Exhaustible) and each.server.spent():
                self._renew(each)

    def _renew(self, each: Managed) -> None:
        """Have a process end that only a new start can help; its end starts it again."""
        if each.process is None or each.launch is None:
            return
        each.renewed = True
        self.say(f"[yellow]●[/yellow] {each.server.name:9s} could not write its disk, which has room again")
        each.process.send_signal(each.launch.stop_signal)

    def _start_stage(self, stage: Sequence[Server]) -> bool:
        """Start a stage and wait until it is ready; False if a signal came first."""
        began = self.clock()
        new = [Managed(server) for server in stage]
        self._managed += new
        for each in new:
            self._start(each)
        self._tell("starting")
        while not all(each.ready for each in new):
            if self._signals:
                return False
            self.look_after("starting")
            for each in new:
                if each.restarts > _DEATHS_AT_START:
                    raise _not_started(each, f"ended {each.restarts} times while it started")
                if not each.ready and self.clock() - began > _READY_TIMEOUT_SECONDS:
                    raise _not_started(each, f"is not ready after {_READY_TIMEOUT_SECONDS:.0f} s")
            time.sleep(_TICK_SECONDS / 2)
        return True

    def _start(self, each: Managed) -> None:
        each.launch = each.server.prepare()
        each.process = spawn(each.launch)
        each.ready = each.renewed = False
        each.started_at = self.clock()

    def _start_again(self, each: Managed) -> None:
        """Restart what died; what prevents it now (a full disk) may be over at the next try."""
        each.started_at = self.clock()
        try:
            self._start(each)
        except (StartError, OSError) as error:
            self._note_death(each, f"could not be started: {_sentence(error)}")

    def _tell(self, state: str) -> None:
        """Record a new state; if it cannot be written, the mesh goes on and it is written later."""
        try:
            self.changed(state)
        except OSError as error:
            if not self._untold:
                self.say(f"[yellow]●[/yellow] The state of the mesh cannot be written: {escape(_sentence(error))}")
            self._untold = True
        else:
            self._untold = False

    def _note_death(self, each: Managed, cause: str) -> None:
        """Plan the next start of a process that ended, or did not start."""
        now = self.clock()
        if now - each.started_at > _SETTLED_SECONDS:
            each.backoff_seconds = FIRST_BACKOFF_SECONDS
        self.say(
            f"[yellow]●[/yellow] {each.server.name:9s} {escape(cause)}; starts again in {each.backoff_seconds:g} s"
            + (f", see {escape(str(each.launch.log))}" if each.launch else "")
        )
        each.process = None
        each.ready = False
        each.restarts += 1
        each.next_start_at = now + each.backoff_seconds
        each.backoff_seconds = min(each.backoff_seconds * 2, LAST_BACKOFF_SECONDS)

    def _stop_all(self) -> None:
        """Stop all in reverse: first the gateway, then the services, then the servers, which go together."""
        self.say("Stopping.")
        self._tell("stopping")
        patience = self._signals
        servers = len(self.stages[0]) if len(self.stages) > 1 else 0
        for each in reversed(self._managed[servers:]):
            self._ask_to_stop(each)
            self._stop(each, patience)
        # They know nothing of each other.
        for each in self._managed[:servers]:
            self._ask_to_stop(each)
        for each in reversed(self._managed[:servers]):
            self._stop(each, patience)
        self._tell("stopped")

    @staticmethod
    def _ask_to_stop(each: Managed) -> None:
        if each.process is not None and each.launch is not None and each.process.poll() is None:
            each.process.send_signal(each.launch.stop_signal)

    def _stop(self, each: Managed, patience: int) -> None:
        if each.process is None or each.launch is None:
            return
        deadline = self.clock() + each.launch.stop_seconds
        while each.process.poll() is None:
            # A second Ctrl-C stops at once.
            if self.clock() > deadline or self._signals > max(patience, 1):
                self.say(f"[red]●[/red] {each.server.name:9s} did not stop and is killed")
                each.process.kill()
                each.process.wait()
                break
            time.sleep(_TICK_SECONDS / 4)
        else:
            self.say(f"○ {each.server.name:9s} stopped")
        each.process = None
        each.ready = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 -- the signature of a signal handler
        self._signals += 1


def _cause(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _not_started(each: Managed, what: str) -> StartError:
    log = each.launch.log if each.launch else None
    return StartError(f"{each.server.name} {what}." + (f" The end of {log}:\n{log_tail(log)}" if log else ""))
