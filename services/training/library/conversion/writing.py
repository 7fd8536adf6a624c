"""Write the tensors of an archive as safetensors, a piece at a time."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Final

from services.training.library.conversion.archives import ELEMENT_BYTES, Archive
from services.training.library.conversion.pickles import RefusedPickleError, Tensor

_PIECE_BYTES: Final = 1 << 20
_MAX_TENSORS: Final = 20_000
_MAX_BYTES: Final = 1 << 30
# Where training tools put the weights inside of what they save.
_INNER: Final = ("state_dict", "lora_state_dict", "lora", "model", "module")
_WEIGHTS: Final = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})


def convert(archive: Archive, source: BinaryIO, into: BinaryIO) -> int:
    """Write the tensors of an archive.

    Args:
        archive: What the source holds.
        source: The file.
        into: Takes the safetensors file.

    Returns:
        How many tensors were written.

    Raises:
        RefusedPickleError: There are none, or they lie outside of what the file holds.
    """
    tensors = _tensors(archive.content)
    header, at = {}, 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _WEIGHTS:
            raise RefusedPickleError("it holds whole numbers where weights belong")
        length = math.prod(tensor.shape) * ELEMENT_BYTES[tensor.dtype]
        _check_place(archive, tensor)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, at + length]}
        at += length
        if at > _MAX_BYTES:
            raise RefusedPickleError("its tensors are too large")
    text = json.dumps(header).encode()
    into.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors.values():
        into.writelines(_pieces(archive, source, tensor))
    into.flush()
    return len(tensors)


def _tensors(content: Any) -> dict[str, Tensor]:
    if isinstance(content, dict):
        for held in (content, *(content.get(name) for name in _INNER)):
            if isinstance(held, dict):
                found = {key: value for key, value in held.items() if isinstance(value, Tensor)}
                if found:
                    return _named(found)
    raise RefusedPickleError("it holds no tensors by name")


def _named(found: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    if len(found) > _MAX_TENSORS or not all(isinstance(key, str) and key != "__metadata__" for key in found):
        raise RefusedPickleError("it holds too many tensors, or some without a name")
    return dict(found)


def _check_place(archive: Archive, tensor: Tensor) -> None:
    place = archive.places.get(tensor.storage.key)
    if place is None:
        raise RefusedPickleError("a tensor's storage is not in the file")
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    if math.prod(tensor.shape) and (last + 1) * ELEMENT_BYTES[tensor.dtype] > place.bytes:
        raise RefusedPickleError("a tensor lies outside of its storage")


def _pieces(archive: Archive, source: BinaryIO, tensor: Tensor) -> Iterator[bytes]:
    """Yield a tensor's bytes in the order of its elements."""
    width = ELEMENT_BYTES[tensor.dtype]
    start = archive.places[tensor.storage.key].start
    if not math.prod(tensor.shape):
        return
    if tensor.strides == _contiguous(tensor.shape) or math.prod(tensor.shape) == 1:
        yield from _run(source, start + tensor.offset * width, math.prod(tensor.shape) * width)
        return
    if len(tensor.shape) > 2:
        raise RefusedPickleError("a tensor's elements lie in an order that is not read")
    rows, columns = tensor.shape if len(tensor.shape) == 2 else (1, tensor.shape[0])
    row_stride, stride = tensor.strides if len(tensor.shape) == 2 else (0, tensor.strides[0])
    span = ((rows - 1) * row_stride + (columns - 1) * stride + 1) * width
    if span > _MAX_SPAN_BYTES or not row_stride + stride:
        raise RefusedPickleError("a tensor's elements lie in an order that is not read")
    source.seek(start + tensor.offset * width)
    held = source.read(span)
    for row in range(rows):
        begin = row * row_stride * width
        # Byte by byte of all elements of the row: slices are made outside of the interpreter.
        made = bytearray(columns * width)
        for byte in range(width):
            step = stride * width
            one = held[begin + byte : begin + byte + (columns - 1) * step + 1 : step] if step else b""
            made[byte::width] = one if step else held[begin + byte : begin + byte + 1] * columns
        yield bytes(made)


_MAX_SPAN_BYTES: Final = 128 << 20


def _run(source: BinaryIO, start: int, length: int) -> Iterator[bytes]:
    source.seek(start)
    while length:
        piece = source.read(min(length, _PIECE_BYTES))
        if not piece:
            raise RefusedPickleError("it is cut short")
        length -= len(piece)
        yield piece


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
