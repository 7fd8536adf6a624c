"""The lifecycle of a service process: start, signals, orderly end, exit code."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

import uvloop

from meshkit.certificates import MeshCertificate
from meshkit.config import PREFIX, MeshSettings
from meshkit.errors import MeshError
from meshkit.logging import configure, get_logger
from meshkit.span_export import export_spans

_log = get_logger(__name__)

# More than any service of the mesh opens; tables in the kernel grow with what is used, not with this.
_MOST_DESCRIPTORS = 65_536

_SettingsT = TypeVar("_SettingsT", bound=MeshSettings)
_RuntimeT = TypeVar("_RuntimeT", bound="Runtime")
Main = Callable[[AsyncExitStack, asyncio.Event], Awaitable[None]]


def run(main: Main, *, service: str, log_level: str | None = None) -> NoReturn:
    """Run a service until SIGTERM or SIGINT, then exit the process.

    What `main` put on the exit stack is closed in reverse order, whatever ended it. A second signal ends the process at
    once.

    Args:
        main: Wires the service and waits for the event, which a signal sets.
        service: Name of the service in its logs.
        log_level: Least level that is written; `ATELIER_LOG_LEVEL`, else info, where absent.
    """
    level = (log_level or os.environ.get(f"{PREFIX}LOG_LEVEL") or "info").lower()
    # Objects made at the start live as long as the process, and messages are freed by reference counts: to scan all at
    # every 700th allocation, Python's default, took 3 % of a busy service's time.
    gc.set_threshold(20_000, 20, 100)
    raise_descriptors()
    configure(service, level if level in {"debug", "info", "warning", "error"} else "info")
    code = uvloop.run(_supervise(main, service))
    # The interpreter would collect all that modules hold, for half a second in which nobody serves.
    gc.freeze()
    sys.exit(code)


def raise_descriptors() -> None:
    """Let the process have as many descriptors as it may.

    Shells and containers begin with 1,024, which as many idle connections use up.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Runtime(Protocol):
    """A running service, as its `composition` returns it."""

    @property
    def address(self) -> str:
        """The bound address, `host:port`."""
        ...


def run_service(
    service: str,
    settings: type[_SettingsT],
    start: Callable[[_SettingsT, AsyncExitStack], Awaitable[_RuntimeT]],
    over: Callable[[_RuntimeT], Awaitable[None]] | None = None,
) -> NoReturn:
    """Run a service from its settings until it is told to stop: what each `__main__` does.

    Args:
        service: Name of the service in its logs.
        settings: Its settings, read from the environment.
        start: The `start` of its `composition`.
        over: Waits until the service has nothing more to do, which ends it as a signal does.
    """

    async def main(stack: AsyncExitStack, stop: asyncio.Event) -> None:
        given = settings()
        MeshCertificate.from_settings(given)  # one of no use is told of before anything is started
        export_spans(given, service, stack)
        running = await start(given, stack)
        announce(running.address, given.port_file)
        _log.info("ready", address=running.address)
        if over is not None:
            await _first(stop.wait(), over(running))
        else:
            await stop.wait()

    run(main, service=service)


async def _first(*waits: Awaitable[object]) -> None:
    """Wait until one of them ends; raise what it raises."""
    tasks = [asyncio.ensure_future(one) for one in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def announce(address: str, path: Path | None = None) -> None:
    """Write the bound address to the file that `ATELIER_PORT_FILE` names, whole or not at all; nothing without.

    Args:
        address: `host:port`.
        path: The file, where it is known already.
    """
    named = path or (Path(value) if (value := os.environ.get(f"{PREFIX}PORT_FILE")) else None)
    if named is None:
        return
    scratch = named.with_name(f".{named.name}.{os.getpid()}")
    scratch.write_text(f"{address}\n", encoding="ascii")
    scratch.replace(named)


async def _supervise(main: Main, service: str) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            _log.warning("second_signal", signal=number.name)
            os._exit(128 + number)
        _log.info("stopping", signal=number.name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        async with AsyncExitStack() as stack:
            await main(stack, stop)
    except MeshError as error:
        _log.error("service_failed", error=error.message, reason=error.reason)
        return 1
    except Exception:
        _log.exception("service_failed")
        return 1
    _log.info("stopped", service=service)
    return 0
