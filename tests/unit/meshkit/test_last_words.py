"""The last error of a child's standard error."""

import pytest

from meshkit.last_words import last_error

TRACEBACK = b"""warning: something old
Traceback (most recent call last):
  File "/opt/mesh/services/child.py", line 3, in <module>
    import torch
ModuleNotFoundError: No module named 'torch'
"""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"", ""),
        (b'{"event": "a line of the log"}\n', ""),
        (b"Killed\n\n", "Killed"),
        (TRACEBACK, "ModuleNotFoundError: No module named 'torch'"),
        (TRACEBACK + b'{"event": "left"}\n', "ModuleNotFoundError: No module named 'torch'"),
        (TRACEBACK + b"\nDuring handling of it:\n\n" + TRACEBACK.replace(b"torch", b"numpy"), "numpy"),
        (
            b"Traceback (most recent call last):\n  File\nRuntimeError: CUDA error\nHints follow.\n",
            "RuntimeError: CUDA error",
        ),
    ],
)
def test_the_last_exception_is_told_or_the_last_line_that_is_none_of_the_log(said: bytes, told: str) -> None:
    assert told in last_error(said)
    assert bool(told) == bool(last_error(said))


def test_folders_of_the_machine_are_not_told() -> None:
    said = b"ImportError: /opt/venv/lib/libgomp.so.1: cannot read '/srv/secret place/model' of http://host/a/b, 3/4\n"
    told = last_error(said)
    assert told.startswith("ImportError: libgomp.so.1: cannot read")
    assert "/opt" not in told
    assert "http://host/a/b, 3/4" in told


def test_secrets_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    told = last_error(b"OSError: hf_abcdefgh was refused by https://user:word@hub, password=opensesame\n")
    assert "hf_abcdefgh" not in told
    assert "word@" not in told
    assert "opensesame" not in told


def test_a_long_line_is_cut_and_control_characters_are_none() -> None:
    told = last_error(b"Error: " + b"x" * 5000 + b"\x1b[31m\n")
    assert len(told) == 200
    assert last_error(b"a\x07b\xff\n").isprintable()
