"""The embedded NATS: what its log says of streams that it gave up."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from atelier_cli.embedded.nats import NatsServer

_LINE = "[7] [ERR] Filestore [ATELIER_EVENTS] Critical write error: write 1.blk: no space left on device\n"


@pytest.fixture
def server(tmp_path: Path) -> NatsServer:
    (tmp_path / "nats.log").write_text(_LINE)
    server = NatsServer(tmp_path / "nats", 4222, "a password", tmp_path / "nats.log")
    server.prepare()
    return server


def say(server: NatsServer, text: str) -> None:
    with server.log.open("a") as log:
        log.write(text)


def test_a_stream_given_up_needs_a_new_start_and_what_an_earlier_one_gave_up_does_not(server: NatsServer) -> None:
    assert not server.spent()
    say(server, "[7] [INF] Server is ready\n" + _LINE[:40])
    assert not server.spent(), "the line is not whole"
    say(server, _LINE[40:])
    assert server.spent()
    assert server.spent(), "until it is started again"
    server.prepare()
    assert not server.spent()


def test_it_is_not_started_again_before_there_is_room(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    say(server, _LINE)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=10, f_frsize=4096))
    assert not server.spent()
    monkeypatch.undo()
    assert server.spent()


def test_a_log_that_is_gone_says_nothing(server: NatsServer) -> None:
    server.log.unlink()
    assert not server.spent()
