"""Weights in files and in memory: how large they are, and which are the same."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Hashable, Iterable
from pathlib import Path

import torch

_LARGE_BYTES = 64 << 20


def stored_numbers(folder: Path) -> int:
    """Count the numbers in a folder's safetensors files, from their headers alone."""
    return sum(_numbers(file) for file in folder.glob("*.safetensors"))


def memory_of(modules: Iterable[torch.nn.Module]) -> dict[Hashable, int]:
    """Return the bytes of the modules' tensors by address; a tensor that two modules share has one address."""
    return {
        tensor.data_ptr(): tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers())
    }


def fingerprint(folder: Path, device: str) -> str:
    """Name the content of a folder of weights, as it is on a device; equal names mean equal weights.

    Small files count by their hash. Large ones count by path, size and time: the hub's cache names them by their hash.
    """
    digest = hashlib.sha256(device.encode())
    for file in sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")):
        real = file.resolve()
        stat = real.stat()
        if stat.st_size <= _LARGE_BYTES:
            digest.update(real.read_bytes())
        else:
            digest.update(f"{os.fspath(real)}:{stat.st_size}:{stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def _numbers(file: Path) -> int:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
