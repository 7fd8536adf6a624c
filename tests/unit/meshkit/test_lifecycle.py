import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meshkit import lifecycle

SERVICE = """
import asyncio, sys
from meshkit import lifecycle

async def main(stack, stop):
    stack.callback(print, "closed last", flush=True)
    stack.callback(print, "closed first", flush=True)
    print("ready", flush=True)
    {body}

lifecycle.run(main, service="sample")
"""


def start(body: Any) -> Any:
    return subprocess.Popen(
        [sys.executable, "-c", SERVICE.format(body=body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_in_order(number: Any) -> None:
    with start("await stop.wait()") as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    assert (out, process.returncode) == ("closed first\nclosed last\n", 0)


ENDING = """
import asyncio
from dataclasses import dataclass
from meshkit import lifecycle
from meshkit.config import MeshSettings

@dataclass
class Running:
    address: str = "127.0.0.1:1"

async def start(settings, stack):
    stack.callback(print, "closed", flush=True)
    return Running()

async def over(running):
    {body}

lifecycle.run_service("sample", MeshSettings, start, over)
"""


@pytest.mark.parametrize(
    ("body", "code"), [("print(running.address, flush=True)", 0), ("print(running.address); raise ValueError", 1)]
)
def test_a_service_that_has_nothing_more_to_do_ends_in_order(body: Any, code: int, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ENDING.format(body=body)],
        env={**os.environ, "ATELIER_PORT_FILE": str(tmp_path / "port")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ran.stdout.splitlines(), ran.returncode) == (["127.0.0.1:1", "closed"], code), ran.stderr


def test_the_interpreter_collects_nothing_at_the_end() -> None:
    body = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0))"
    with start(body) as process:
        out, _ = process.communicate(timeout=60)
    assert (out.splitlines()[-1], process.returncode) == ("True", 0)


def test_a_second_signal_ends_it_at_once() -> None:
    with start("await asyncio.Event().wait()") as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert "stopping" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise RuntimeError('broken')", "RuntimeError: broken"),
        ("from meshkit.errors import unavailable; raise unavailable('no database')", "no database"),
    ],
)
def test_a_failure_is_told_and_what_was_opened_is_closed(body: Any, told: Any) -> None:
    with start(body) as process:
        out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("ready\nclosed first\nclosed last\n", 1)
    assert told in err


def test_the_address_is_announced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_PORT_FILE", str(tmp_path / "port"))
    lifecycle.announce("127.0.0.1:1234")
    assert (tmp_path / "port").read_text() == "127.0.0.1:1234\n"
    assert [path.name for path in tmp_path.iterdir()] == ["port"]


def test_without_a_file_nothing_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATELIER_PORT_FILE", raising=False)
    lifecycle.announce("127.0.0.1:1234")


def test_a_process_gets_as_many_descriptors_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, int]] = []
    limits = (1024, 4096)
    monkeypatch.setattr("resource.getrlimit", lambda _: limits)
    monkeypatch.setattr("resource.setrlimit", lambda _, wanted: given.append(wanted))
    lifecycle.raise_descriptors()
    limits = (1024, 1_000_000)
    lifecycle.raise_descriptors()
    limits = (500_000, 1_000_000)
    lifecycle.raise_descriptors()
    assert given == [(4096, 4096), (65_536, 1_000_000)]
