"""Logs are read from their ends, in whole lines."""

from pathlib import Path

import pytest

from atelier_cli.commands import logs as commands
from atelier_cli.commands.logs import LogTail, logs
from atelier_cli.errors import CliError, ExitCode


@pytest.mark.parametrize("block", [1, 7, 65536])
def test_the_last_lines_are_whole_ones(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_BLOCK_BYTES", block)
    file = tmp_path / "tasks.log"
    file.write_bytes(b"one\ntwo\nthree\nunfin")
    tail = LogTail(file)
    assert tail.last(2) == [b"two\n", b"three\n"]
    assert tail.new() == []
    with file.open("ab") as log:
        log.write(b"ished\nfo")
    assert tail.new() == [b"unfinished\n"]
    assert tail.new() == []
    assert LogTail(file).last(9) == [b"one\n", b"two\n", b"three\n", b"unfinished\n"]
    assert LogTail(file).last(0) == []


def test_a_log_that_begins_anew_is_read_from_its_start(tmp_path: Path) -> None:
    file = tmp_path / "tasks.log"
    file.write_bytes(b"a long first line\n")
    tail = LogTail(file)
    tail.last(0)
    file.write_bytes(b"new\n")
    assert tail.new() == [b"new\n"]


def test_logs_of_a_mesh_are_printed_with_their_names_or_alone(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (tmp_path / "logs").mkdir()
    for name in ("tasks", "gateway"):
        (tmp_path / "logs" / f"{name}.log").write_text(f"of {name}\n")
    logs(data=tmp_path)
    assert capfdbinary.readouterr().out == b"gateway   | of gateway\ntasks     | of tasks\n"
    logs("tasks", data=tmp_path)
    assert capfdbinary.readouterr().out == b"of tasks\n"
    with pytest.raises(CliError, match="no log of 'nats'; there are those of gateway, tasks"):
        logs("nats", data=tmp_path)


def test_a_folder_without_logs_is_told(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="no logs") as caught:
        logs(data=tmp_path)
    assert caught.value.code is ExitCode.NOT_RUNNING
