"""The safetensors format without its library: what a file says of its tensors, judged before any is read.

https://huggingface.co/docs/safetensors: eight bytes of little-endian length, a JSON object, the tensors' bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from modelkit.errors import ModelError

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 20_000
_MAX_NAME_CHARACTERS = 512
_MAX_DIMENSIONS = 8
TYPE_BYTES: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
"""Bytes of the types that weights come in."""
_NO_FILE = "The LoRA is not a safetensors file"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor of a file.

    Attributes:
        dtype: Its type, as `TYPE_BYTES` names it.
        shape: Its shape.
        start: First byte, from the beginning of the file.
        stop: First byte behind it.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TensorFile:
    """What a file says of itself.

    Attributes:
        tensors: The tensors by name.
        notes: Its metadata.
        bytes: Bytes of all tensors.
    """

    tensors: Mapping[str, TensorEntry]
    notes: Mapping[str, str]
    bytes: int


def read_header(file: BinaryIO, size: int) -> TensorFile:
    """Read and judge the header; no byte of a tensor is read.

    Args:
        file: The file, at its beginning.
        size: Its size.

    Raises:
        ModelError: The file is not valid, or no weights of a LoRA; the message says why.
    """
    head = file.read(8)
    if len(head) < 8:
        raise ModelError(f"{_NO_FILE}: it has {len(head)} bytes.")
    (length,) = struct.unpack("<Q", head)
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise ModelError(f"{_NO_FILE}: its header cannot be {length} bytes long.")
    header = _parse(file.read(length))
    notes = _notes(header.pop("__metadata__", {}))
    if not 1 <= len(header) <= MAX_TENSORS:
        raise ModelError(f"The LoRA must hold 1 to {MAX_TENSORS} tensors, and holds {len(header)}.")
    begin = 8 + length
    tensors = {name: _entry(name, entry, begin) for name, entry in header.items()}
    end = begin
    for entry in sorted(tensors.values(), key=lambda one: (one.start, one.stop)):
        if entry.start != end:
            raise ModelError(f"{_NO_FILE}: its tensors overlap or leave gaps.")
        end = entry.stop
    if end != size:
        raise ModelError("The LoRA is cut short, or longer than it says.")
    return TensorFile(tensors, notes, size - begin)


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise ModelError(f"{_NO_FILE}: its header cannot be read.") from None
    if not isinstance(header, dict):
        raise ModelError(f"{_NO_FILE}: its header names no tensors.")
    return header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # Readers differ in which of two they take: what was judged need not be what is loaded.
        raise ValueError("a name stands twice")
    return found


def _notes(notes: object) -> dict[str, str]:
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise ModelError(f"{_NO_FILE}: its metadata holds more than texts.")
    return notes


def _entry(name: str, entry: object, begin: int) -> TensorEntry:
    if not 1 <= len(name) <= _MAX_NAME_CHARACTERS or not name.isprintable():
        raise ModelError(f"{_NO_FILE}: a tensor's name is empty, too long or not printable.")
    shown_name = shown(name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ModelError(f"{_NO_FILE}: {shown_name} is not described as a tensor.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (_whole(shape) and len(shape) <= _MAX_DIMENSIONS and _whole(offsets) and len(offsets) == 2):
        raise ModelError(f"{_NO_FILE}: {shown_name} has no shape or no place in the file.")
    if not isinstance(dtype, str) or dtype not in TYPE_BYTES:
        raise ModelError(f"The LoRA holds tensors of the type {shown(str(dtype))}, which is not supported.")
    start, stop = offsets
    if math.prod(shape) * TYPE_BYTES[dtype] != stop - start:
        raise ModelError(f"{_NO_FILE}: {shown_name} has another size than its shape says.")
    return TensorEntry(dtype, tuple(shape), begin + start, begin + stop)


def _whole(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def shown(name: str) -> str:
    """Return a name in characters that are safe in a message: it comes from an untrusted file."""
    return "".join(character for character in name if character.isalnum() or character in "._-")[:100]
