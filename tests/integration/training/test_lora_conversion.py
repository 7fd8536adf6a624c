"""Files of `torch.save`: tensors come out as they went in, and what is more than tensors does nothing."""

import asyncio
import builtins
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from meshkit.errors import ErrorKind, MeshError
from services.training.library.conversion import converter
from services.training.library.conversion.converter import ConversionLimits, PickleConverter

LIMITS = ConversionLimits(seconds=120)
ON_LINUX = sys.platform == "linux"


def convert(source: Path, into: Path, limits: ConversionLimits = LIMITS) -> list[str]:
    return asyncio.run(PickleConverter(limits).convert(source, into))


def refusal(source: Path, into: Path, limits: ConversionLimits = LIMITS) -> str:
    with pytest.raises(MeshError) as caught:
        convert(source, into, limits)
    assert caught.value.kind is ErrorKind.INVALID
    assert caught.value.violations[0].path == "file"
    assert not into.exists()
    return caught.value.violations[0].message


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "a.lora_A.weight": torch.randn(4, 32),
        "a.lora_B.weight": torch.randn(32, 4).half(),
        "transposed": torch.randn(6, 5).t(),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "bfloat16": torch.randn(3, 3).bfloat16(),
        "every third": torch.randn(10)[2::3],
        "a.alpha": torch.tensor(2.0),
        "double": torch.randn(2, 3).double(),
        "empty": torch.zeros(0, 4),
    }


@pytest.mark.parametrize("suffix", ["pt", "ckpt", "bin", "pth"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_come_out_as_they_went_in(tmp_path: Path, suffix: str, zipped: bool) -> None:
    source, into, held = tmp_path / f"lora.{suffix}", tmp_path / "out.safetensors", tensors()
    content = {"pt": held, "ckpt": {"state_dict": held, "epoch": 3}, "bin": dict(held), "pth": {"lora": held}}[suffix]
    torch.save(content, source, _use_new_zipfile_serialization=zipped)
    measures = convert(source, into)
    made = load_file(into)
    assert made.keys() == held.keys()
    for name, tensor in held.items():
        assert made[name].dtype == tensor.dtype
        assert torch.equal(made[name], tensor.detach()), name
    assert not ON_LINUX or "seccomp" in measures


def test_types_of_eight_bits_and_a_modules_own_dictionary_are_read(tmp_path: Path) -> None:
    source, into = tmp_path / "a.pt", tmp_path / "out.safetensors"
    held = torch.nn.Linear(3, 2).state_dict()
    held["small"] = torch.randn(4, 4).to(torch.float8_e4m3fn)
    torch.save(held, source)
    convert(source, into)
    made = load_file(into)
    assert torch.equal(made["weight"], held["weight"])
    assert torch.equal(made["small"].float(), held["small"].float())


class Calls:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._what = (function, arguments)

    def __reduce__(self) -> Any:
        return self._what


def evil(trace: Path) -> dict[str, Any]:
    return {
        "write a file": Calls(os.system, f"touch {trace}"),
        "open a file": Calls(open, str(trace), "w"),
        "read the environment": Calls(os.getenv, "PATH"),
        "open a socket": Calls(socket.create_connection, ("127.0.0.1", 9)),
        "fork": Calls(os.fork),
        "evaluate": Calls(builtins.eval, f"open({str(trace)!r}, 'w')"),
        "run a process": Calls(subprocess.Popen, ["touch", str(trace)]),
        "import": Calls(builtins.__import__, "antigravity"),
        "load another file": Calls(torch.load, str(trace)),
    }


@pytest.mark.parametrize("what", evil(Path("x")))
def test_a_pickle_that_would_do_something_is_refused_and_nothing_happens(tmp_path: Path, what: str) -> None:
    trace, source = tmp_path / "trace", tmp_path / "evil.pt"
    content = {"a.lora_A.weight": torch.ones(2, 2), "x": evil(trace)[what]}
    for form in ("zip", "legacy", "bare"):
        if form == "bare":
            source.write_bytes(pickle.dumps(evil(trace)[what]))
        else:
            torch.save(content, source, _use_new_zipfile_serialization=form == "zip")
        assert "it would call " in refusal(source, tmp_path / "out.safetensors")
        assert not trace.exists()


def _zip(path: Path, *entries: tuple[str, bytes], kind: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in entries:
            archive.writestr(name, data)


def _proto(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


FAULTY = {
    "a zip bomb": ("compressed", lambda p: _zip(p, ("a/data.pkl", b"\0" * (64 << 20)), kind=zipfile.ZIP_DEFLATED)),
    "deep nesting": ("", lambda p: _zip(p, ("a/data.pkl", _proto(b"]" * 50_000 + b"a" * 49_999)))),
    "nesting without an end": ("", lambda p: _zip(p, ("a/data.pkl", b"\x80\x02" + b"(" * 3_000_000))),
    "a text of terabytes": ("", lambda p: _zip(p, ("a/data.pkl", _proto(b"\x8d" + struct.pack("<Q", 1 << 42) + b"x")))),
    "a number of megabytes": ("", lambda p: _zip(p, ("a/data.pkl", _proto(b"\x8b" + struct.pack("<i", 1 << 30))))),
    "lists that hold each other": (
        "no tensors by name",
        lambda p: _zip(p, ("a/data.pkl", _proto(b"]q\x00" + b"]q\x01h\x00a" * 1000 + b"h\x00a"))),
    ),
    "no pickle": ("no pickle of torch", lambda p: _zip(p, ("a/other", b"x"))),
    "a damaged zip": ("archive is damaged", lambda p: p.write_bytes(b"PK\x03\x04" + b"x" * 500)),
    "a picture": ("no file of torch", lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 500)),
    "nothing": ("no file of torch", lambda p: p.write_bytes(b"")),
    "text": ("no file of torch", lambda p: p.write_bytes(b"cposix\nsystem\n(S'touch /tmp/x'\ntR.")),
    "whole numbers": ("whole numbers", lambda p: torch.save({"a": torch.arange(4)}, p)),
    "no tensors": ("no tensors by name", lambda p: torch.save({"a": 1}, p)),
    "a list of tensors": ("no tensors by name", lambda p: torch.save([torch.ones(2)], p)),
    "a whole module": ("it would call torch.nn.modules.linear.Linear", lambda p: torch.save(torch.nn.Linear(2, 2), p)),
}


@pytest.mark.parametrize("what", FAULTY)
def test_a_faulty_file_is_refused_with_the_reason(tmp_path: Path, what: str) -> None:
    reason, write = FAULTY[what]
    source = tmp_path / "faulty.pt"
    write(source)  # type: ignore[no-untyped-call]  # lambdas of the table
    assert reason in refusal(source, tmp_path / "out.safetensors")


def test_a_tensor_outside_of_its_storage_is_refused(tmp_path: Path) -> None:
    source, moved = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({"a": torch.ones(4)}, source)
    with zipfile.ZipFile(source) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    _zip(moved, *((name, data[:8] if "/data/" in name else data) for name, data in entries))
    assert "outside of its storage" in refusal(moved, tmp_path / "out.safetensors")


def test_a_child_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    source = tmp_path / "slow.pt"
    _zip(source, ("a/data.pkl", b"\x80\x02" + b"N0" * 900_000 + b"}."))
    limits = ConversionLimits(seconds=0.05)
    assert "takes more than 0.05 s" in refusal(source, tmp_path / "out.safetensors", limits)


def test_a_child_that_does_not_start_is_not_the_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, into = tmp_path / "a.pt", tmp_path / "out.safetensors"
    torch.save(tensors(), source)
    monkeypatch.setattr(converter, "_CHILD", "services.training.library.conversion.away")
    with pytest.raises(MeshError) as caught:
        convert(source, into)
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert not into.exists()


def test_a_child_that_has_not_started_in_time_is_not_the_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, into = tmp_path / "a.pt", tmp_path / "out.safetensors"
    torch.save(tensors(), source)
    monkeypatch.setattr(converter, "_START_SECONDS", 0.001)
    with pytest.raises(MeshError) as caught:
        convert(source, into)
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert not into.exists()


def test_a_child_that_writes_more_than_it_may_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "large.pt"
    torch.save({"a": torch.ones(1 << 18)}, source)
    limits = ConversionLimits(file_bytes=1 << 16, seconds=120)
    assert "The file cannot be taken" in refusal(source, tmp_path / "out.safetensors", limits)


ATTEMPTS = """
    import json, os, socket, sys
    from services.training.library.conversion import jail
    trace = sys.argv[1]
    before = os.open("/dev/null", os.O_RDONLY)
    measures = jail.enter(memory_bytes=1 << 29, file_bytes=1 << 20, cpu_seconds=20, keep=(1, 2))
    def attempt(what):
        try:
            what()
        except (OSError, MemoryError) as error:
            return type(error).__name__
        return "done"
    answers = {
        "open": attempt(lambda: os.open(trace, os.O_CREAT | os.O_WRONLY)),
        "read": attempt(lambda: os.open("/etc/passwd", os.O_RDONLY)),
        "inherited": attempt(lambda: os.read(before, 1)),
        "socket": attempt(lambda: socket.socket()),
        "fork": attempt(lambda: os.fork() or os._exit(0)),
        "exec": attempt(lambda: os.execv("/bin/true", ["true"])),
        "kill": attempt(lambda: os.kill(os.getppid(), 0)),
        "unlink": attempt(lambda: os.unlink(trace)),
        "memory": attempt(lambda: bytearray(1 << 30)),
    }
    os.write(1, json.dumps([measures, dict(os.environ), answers]).encode())
"""


@pytest.mark.skipif(not ON_LINUX, reason="the filter of system calls is Linux's")
def test_the_child_can_do_nothing_even_if_something_in_it_wanted_to(tmp_path: Path) -> None:
    script = textwrap.dedent(ATTEMPTS)
    command = [sys.executable, "-I", "-B", "-c", script, str(tmp_path / "trace")]
    done = subprocess.run(command, capture_output=True, env={}, check=True, timeout=60)
    measures, environment, answers = json.loads(done.stdout)
    assert "seccomp" in measures
    assert environment.keys() <= {"LC_CTYPE"}
    assert "done" not in answers.values(), answers
    assert list(tmp_path.iterdir()) == []


def test_a_child_that_reads_gets_no_secret_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    original = asyncio.create_subprocess_exec

    async def noting(*arguments: Any, **options: Any) -> Any:
        given.update(options)
        return await original(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noting)
    monkeypatch.setenv("ATELIER_AUTH_SECRET", "x" * 40)
    source = tmp_path / "a.pt"
    torch.save({"a": torch.ones(2)}, source)
    convert(source, tmp_path / "out.safetensors")
    assert given["env"] == {}
    assert len(given["pass_fds"]) == 2
