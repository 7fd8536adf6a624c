"""Child processes that die with their parent, and what starts them."""

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_LOG_TAIL_BYTES = 2000
# Lower ports are assigned to well-known programs.
_FIRST_PORT = 10_240
_ENOUGH_PORTS = 1_000


def everything(name: str) -> bool:
    """Pass all variables of this process on."""
    del name
    return True


def nothing_of_the_mesh(name: str) -> bool:
    """Pass all variables on but the mesh's settings, some of which are secrets."""
    return not name.startswith("ATELIER_")


class StartError(Exception):
    """A server did not start; the text names it and shows the end of its log."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one process.

    Attributes:
        argv: The program and its arguments.
        log: The file that its output is appended to.
        env: Variables set on top of those that are inherited.
        inherits: Decides by name which of this process's own variables it gets.
        cwd: The folder it starts in.
        user: The user id and group id it runs under; None keeps the caller's.
        stop_signal: The signal that asks it to stop, also sent by the kernel when its parent dies.
        stop_seconds: How long it may take to stop before it is killed.
        umask: The rights that its new files do not get; -1 keeps the caller's.
    """

    argv: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    inherits: Callable[[str], bool] = everything
    cwd: Path = Path("/")
    user: tuple[int, int] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 30.0
    umask: int = -1


class Server(Protocol):
    """A server that this package can run."""

    @property
    def name(self) -> str:
        """The name, which is its role too."""
        ...

    def prepare(self) -> Launch:
        """Make folders and configuration (idempotent) and say how to start."""
        ...

    def ready(self) -> bool:
        """Whether it answers with the right credentials now; blocks for two seconds at most."""
        ...


@runtime_checkable
class Exhaustible(Protocol):
    """A server that may come to serve no more while its process lives."""

    def spent(self) -> bool:
        """Whether only a new start would help, and can; asked ten times a second."""
        ...


def spawn(launch: Launch) -> subprocess.Popen[bytes]:
    """Start a process that gets `launch.stop_signal` when the calling thread ends.

    The kernel ties the signal to the thread and not to the process: call this from a thread that lives as long as the
    child has to, usually the main one.
    """
    parent = os.getpid()
    stop_signal = int(launch.stop_signal)

    def die_with_parent() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, stop_signal, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the request was in force
            os._exit(1)

    uid, gid = launch.user or (None, None)
    inherited = {name: value for name, value in os.environ.items() if launch.inherits(name)}
    with launch.log.open("ab") as log:
        return subprocess.Popen(
            list(launch.argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**inherited, **launch.env},
            cwd=launch.cwd,
            user=uid,
            group=gid,
            extra_groups=[] if launch.user else None,
            umask=launch.umask,
            # A session of its own: Ctrl-C at the terminal reaches the supervisor alone, which stops the rest in order.
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 -- only async-signal-safe calls on memory that exists already
        )


def stop(process: subprocess.Popen[bytes], stop_signal: signal.Signals, timeout_seconds: float = 20.0) -> None:
    """Ask a process to stop, and kill it if it has not within the time."""
    if process.poll() is not None:
        return
    process.send_signal(stop_signal)
    try:
        process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free now, all different.

    They lie below the range that the kernel gives to outgoing connections: else any program's connection could take a
    port between its choice and its use, and keep it for hours.

    Raises:
        StartError: There are not so many.
    """
    # Not the generator that tests seed: two processes would choose the same.
    draw = random.SystemRandom()
    end = _first_outgoing_port()
    ports: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in draw.sample(range(_FIRST_PORT, end), end - _FIRST_PORT):
            if len(ports) == count:
                break
            listener = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                ports.append(port)
    if len(ports) < count:
        message = f"This machine has no {count} free ports from {_FIRST_PORT} to {end - 1}."
        raise StartError(message)
    return ports


def _first_outgoing_port() -> int:
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = 32768
    # If the range begins so low that nothing is left below it, take any port.
    return first if first >= _FIRST_PORT + _ENOUGH_PORTS else 65536


def is_free(port: int) -> bool:
    """Whether 127.0.0.1:port can be listened on now."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def accepts(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def log_tail(log: Path) -> str:
    """Return the end of a log file, for an error message."""
    try:
        return log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
    except FileNotFoundError:
        return ""


class RunningServer:
    """One server of this package under the caller's control; tests use it to start, kill and restart a server."""

    def __init__(self, server: Server, ready_timeout_seconds: float = 60.0) -> None:
        self.server = server
        self._ready_timeout = ready_timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._launch: Launch | None = None

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def launch(self) -> None:
        """Start it, without waiting until it is ready."""
        if self.pid is None:
            self._launch = self.server.prepare()
            self._process = spawn(self._launch)

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            StartError: It ended, or did not answer in time.
        """
        self.launch()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until a launched server answers.

        Raises:
            StartError: It ended, or did not answer in time.
        """
        if self._process is None or self._launch is None:
            message = f"{self.server.name} was not started"
            raise StartError(message)
        wait_ready(self.server.name, self.server.ready, self._process, self._launch.log, self._ready_timeout)

    def stop(self) -> int | None:
        """Stop it in order; return the code that it ended with, None if it was never started."""
        if self._process is None or self._launch is None:
            return None
        stop(self._process, self._launch.stop_signal)
        return self._process.returncode

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def wait_ready(
    name: str, ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, timeout_seconds: float
) -> None:
    """Wait until `ready()`.

    Raises:
        StartError: The process ended, or the time ran out.
    """
    deadline = time.monotonic() + timeout_seconds
    while not ready():
        if process.poll() is not None:
            message = f"{name} ended with code {process.returncode} while it started.\n{log_tail(log)}"
            raise StartError(message)
        if time.monotonic() > deadline:
            message = f"{name} did not answer within {timeout_seconds:.0f} s.\n{log_tail(log)}"
            raise StartError(message)
        time.sleep(0.03)
