"""Whatever the command line is given, it answers with a sentence and an exit code, never with a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from atelier_cli.client import Gateway
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.folder import DataFolder
from atelier_cli.main import app

LONG = "n" * 300
UUID = "00000000-0000-4000-8000-000000000000"


def run(folder: Path, *arguments: str | bytes, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "atelier_cli", *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "ATELIER_DATA": "none"} | environment,
        timeout=60,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", b"caf\xe9"),
        ("generate", "x", "-o", LONG),
        ("generate", "x", "--lora", "a:nan"),
        ("generate", "x", "--strength", "nan"),
        ("generate", "x", "--seed", "9" * 5000),
        ("generate", "x", "--reference", "."),
        ("workflow", "run", "."),
        ("workflow", "graph", LONG),
        ("status", "--data", LONG),
        ("status", "--data", "/dev/null"),
        ("doctor", "--nothing"),
        ("token", "--data", "/dev/null"),
        ("token", "--days", "nan"),
        ("token", "--days", "1e300"),
        ("up", "--data", "/dev/null/x"),
    ],
    ids=lambda arguments: " ".join(str(each)[:20] for each in arguments),
)
def test_an_argument_that_makes_no_sense_is_told(tmp_path: Path, arguments: tuple[str | bytes, ...]) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode in {1, 2, 3}, done.stderr
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr


def test_a_terminal_that_is_not_utf8_ends_no_command(tmp_path: Path) -> None:
    (tmp_path / "ü.yaml").write_text("a: ü: ü\n")
    done = run(tmp_path, "workflow", "run", "ü.yaml", PYTHONIOENCODING="ascii")
    assert done.returncode == ExitCode.USAGE
    assert "line 1" in done.stderr


@pytest.mark.parametrize("url", ["nowhere", "ftp://host", "http://", "http://[", "http://h:99999", "\x7f"])
def test_an_address_that_is_none_is_told_at_once(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_URL", url)
    with pytest.raises(CliError, match="which is no address") as caught:
        Gateway.of(DataFolder(tmp_path))
    assert caught.value.code is ExitCode.USAGE


@pytest.mark.parametrize("token", ["sécret", "a\nb"])
def test_a_token_that_no_header_carries_is_told_at_once(
    tmp_path: Path, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATELIER_URL", "http://gateway")
    monkeypatch.setenv("ATELIER_TOKEN", token)
    with pytest.raises(CliError, match="ATELIER_TOKEN is no token"):
        Gateway.of(DataFolder(tmp_path))


def test_a_tenant_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_URL", "http://gateway")
    monkeypatch.setenv("ATELIER_AUTH_SECRET", "s" * 32)
    with pytest.raises(CliError, match="No token"):
        Gateway.of(DataFolder(tmp_path), "a/b")


@pytest.mark.parametrize("group", ["task", "training", "workflow", "lora", "webhook", "providers", "admin"])
def test_a_group_names_its_commands_where_the_one_asked_for_is_like_none(group: str) -> None:
    with pytest.raises(CliError) as refused:
        app([group, "zzzz"], standalone_mode=False)
    assert refused.value.code is ExitCode.USAGE
    there = next(each for each in app.registered_groups if each.name == group).typer_instance
    assert there is not None
    for command in there.registered_commands:
        assert str(command.name) in refused.value.sentence
    assert "has no command 'zzzz'" in refused.value.sentence


def test_a_command_that_is_almost_there_is_named() -> None:
    done = CliRunner().invoke(app, ["task", "gett"])
    assert done.exit_code == ExitCode.USAGE
    assert "Did you mean 'get'?" in done.output
