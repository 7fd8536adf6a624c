import json
import struct
from pathlib import Path
from typing import Any

import pytest

from modelkit.adapters import inspect
from modelkit.errors import ModelError

GOOD = {"a.lora_A.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


def write(path: Path, header: Any, data: bytes = b"\0" * 24) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_a_sound_file_tells_its_size(tmp_path: Path) -> None:
    assert inspect(write(tmp_path / "a", {**GOOD, "__metadata__": {"x": "y"}})) == 24


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"not json", b""),
        ([], b""),
        ({}, b""),
        ({"a": {"dtype": "OBJECT", "shape": [6], "data_offsets": [0, 24]}}, b"\0" * 24),
        ({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 24]}}, b"\0" * 24),
        ({"a": {"dtype": "F32", "shape": [6], "data_offsets": [-24, 0]}}, b"\0" * 24),
        ({"a": {"dtype": "F32", "shape": [6]}}, b"\0" * 24),
        ({"a": {"dtype": "F32", "shape": [6], "data_offsets": [4, 28]}}, b"\0" * 28),
        ({**GOOD, "b": GOOD["a.lora_A.weight"]}, b"\0" * 24),
        (GOOD, b"\0" * 23),
        (GOOD, b"\0" * 25),
    ],
)
def test_a_faulty_file_is_refused_in_a_sentence(tmp_path: Path, header: Any, data: bytes) -> None:
    with pytest.raises(ModelError, match="LoRA") as caught:
        inspect(write(tmp_path / "a", header, data))
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("content", [b"", b"short", struct.pack("<Q", 1 << 60) + b"x" * 64, b"\x80\x04pickle" * 9])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a safetensors file"):
        inspect(path)


def test_a_type_that_holds_no_values_is_named(tmp_path: Path) -> None:
    header = {"a.lora_A.weight": {"dtype": "I8", "shape": [24], "data_offsets": [0, 24]}}
    with pytest.raises(ModelError, match="tensors of the type I8"):
        inspect(write(tmp_path / "a", header))
