"""The header of a GGUF file: what a model is, read without loading it.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from modelkit.errors import ModelError, ModelErrorKind

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_KEPT_ITEMS = 1024  # of a longer array, as of the vocabulary, the length alone is kept
_BYTES_PER_KEY_VALUE = 2  # float16


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says of its model.

    Attributes:
        architecture: Kind of the network (`llama`).
        context: Tokens that it was trained on.
        vocabulary: Tokens that it knows.
        context_bytes_per_token: Bytes that one token of its context holds: keys and values of all layers.
    """

    architecture: str
    context: int
    vocabulary: int
    context_bytes_per_token: int


def read_header(file: Path) -> GgufHeader:
    """Read the header of a GGUF file.

    Raises:
        ModelError: It is no GGUF file of a language model.
    """
    try:
        with file.open("rb") as stream:
            return _described(_members(stream))
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ModelError("The file of the language model is not a readable GGUF.", ModelErrorKind.RESOURCE) from error


def _described(members: Mapping[str, Any]) -> GgufHeader:
    kind = members["general.architecture"]
    layers, heads = int(members[f"{kind}.block_count"]), int(members[f"{kind}.attention.head_count"])
    width = int(members[f"{kind}.embedding_length"]) // heads
    shared = members.get(f"{kind}.attention.head_count_kv", heads)
    per_layer = list(shared) if isinstance(shared, list) else [shared] * layers
    key = int(members.get(f"{kind}.attention.key_length", width))
    value = int(members.get(f"{kind}.attention.value_length", width))
    words = members["tokenizer.ggml.tokens"]
    return GgufHeader(
        architecture=kind,
        context=int(members[f"{kind}.context_length"]),
        vocabulary=words if isinstance(words, int) else len(words),
        context_bytes_per_token=sum(per_layer) * (key + value) * _BYTES_PER_KEY_VALUE,
    )


def _members(stream: BinaryIO) -> dict[str, Any]:
    magic, version, _, count = struct.unpack("<4sIQQ", stream.read(24))
    if magic != _MAGIC or version not in (2, 3):
        raise ValueError("no GGUF of a known version")
    members: dict[str, Any] = {}
    for _ in range(count):
        name = _string(stream)
        members[name] = _value(stream, _number(stream, "I"))
    return members


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(stream)
    if kind != _ARRAY:
        return _number(stream, _NUMBERS[kind])
    inner, length = _number(stream, "I"), _number(stream, "Q")
    if inner == _STRING:
        for _ in range(length):
            stream.seek(_number(stream, "Q"), 1)
        return length
    if inner == _ARRAY:
        raise ValueError("arrays of arrays are in no known model")
    size = struct.calcsize(f"<{_NUMBERS[inner]}")
    if length > _KEPT_ITEMS:
        stream.seek(size * length, 1)
        return length
    return list(struct.unpack(f"<{length}{_NUMBERS[inner]}", stream.read(size * length)))


def _number(stream: BinaryIO, code: str) -> Any:
    return struct.unpack(f"<{code}", stream.read(struct.calcsize(f"<{code}")))[0]


def _string(stream: BinaryIO) -> str:
    return stream.read(_number(stream, "Q")).decode("utf-8", "replace")
