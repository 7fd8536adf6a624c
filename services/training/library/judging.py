"""Judge a safetensors file: its header, its layers against those of the models, its values. Nothing is loaded.

The file is read once from front to back, a piece at a time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from modelkit.errors import ModelError
from modelkit.flux_layers import Layout
from modelkit.lora_layers import LoraReading, read_layers
from modelkit.tensor_file import TensorEntry, TensorFile, read_header, shown
from services.training.library.bases import BaseModel

_PIECE_BYTES: Final = 4 << 20
_ANOTHER_MODEL: Final = "The LoRA was made for another model"
_TRIGGER_NOTES: Final = ("modelspec.trigger_phrase", "trigger_word", "ss_trigger_word")
_THUMBNAIL_NOTE: Final = "modelspec.thumbnail"
_MOST_NOTES: Final = 100
_MOST_NOTE_CHARACTERS: Final = 2000
_MOST_THUMBNAIL_CHARACTERS: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class LoraFacts:
    """What a file is.

    Attributes:
        base_model: Name of the model that it is for.
        layout: How its layers are named.
        rank: The rank of most of its layers.
        layers: How many it has for that model.
        unmatched: Layers that the model lacks.
        sha256: Hash of the file, in hex.
        bytes: Its size.
        trigger_word: Word that its training has noted.
        thumbnail: Picture that it carries, as a data URL; empty for none.
        notes: Its metadata, long ones left out.
    """

    base_model: str
    layout: str
    rank: int
    layers: int
    unmatched: tuple[str, ...]
    sha256: str
    bytes: int
    trigger_word: str | None
    thumbnail: str
    notes: dict[str, str]


def judge(path: Path, bases: Sequence[BaseModel]) -> LoraFacts:
    """Judge a file.

    Args:
        path: The file.
        bases: Models that it may be for; the first one that it fits counts.

    Raises:
        ModelError: It is no LoRA of any of them; the message says why.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        held = read_header(file, size)
        base, reading = _fitting(file, held, bases)
        file.seek(0)
        digest = _read_through(file, held, reading)
    word = next((held.notes[name] for name in _TRIGGER_NOTES if held.notes.get(name)), None)
    thumbnail = held.notes.get(_THUMBNAIL_NOTE, "")
    return LoraFacts(
        base_model=base.name,
        layout=reading.layout.value,
        rank=reading.rank,
        layers=len(reading.layers),
        unmatched=tuple(shown(layer) for layer in reading.unmatched),
        sha256=digest,
        bytes=size,
        trigger_word=None if word is None else _plain(word)[:100] or None,
        thumbnail=thumbnail if len(thumbnail) <= _MOST_THUMBNAIL_CHARACTERS else "",
        notes=_kept(held),
    )


def judge_trained(path: Path, bases: Sequence[BaseModel], base_model: str) -> LoraFacts:
    """Judge what a training of the mesh made; its model may be one that the library does not know.

    Args:
        path: The file.
        bases: Models that the library knows.
        base_model: Name of the model that was trained on.

    Raises:
        ModelError: It is no LoRA; the message says why.
    """
    try:
        return judge(path, bases)
    except ModelError as refusal:
        if not refusal.message.startswith(_ANOTHER_MODEL):
            raise
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        held = read_header(file, size)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    downs = [entry.shape for name, entry in held.tensors.items() if ".lora_A." in name and entry.shape]
    return LoraFacts(
        base_model=base_model,
        layout=Layout.DIFFUSERS.value,
        rank=max((shape[0] for shape in downs), default=1),
        layers=len(downs),
        unmatched=(),
        sha256=digest,
        bytes=size,
        trigger_word=None,
        thumbnail="",
        notes=_kept(held),
    )


def _kept(held: TensorFile) -> dict[str, str]:
    kept = {
        _plain(name): _plain(value)
        for name, value in held.notes.items()
        if name != _THUMBNAIL_NOTE and len(name) <= 100 and len(value) <= _MOST_NOTE_CHARACTERS
    }
    return dict(sorted(kept.items())[:_MOST_NOTES])


def _plain(text: str) -> str:
    # PostgreSQL takes no NUL, UTF-8 no lone surrogate.
    return "".join(one for one in text if one.isprintable() or one in "\n\t").strip()


def _fitting(file: BinaryIO, held: TensorFile, bases: Sequence[BaseModel]) -> tuple[BaseModel, LoraReading]:
    shapes = {name: entry.shape for name, entry in held.tensors.items()}
    refusals: list[ModelError] = []
    for base in bases:
        try:
            return base, read_layers(shapes, base.layers, is_zero=lambda name: _is_zero(file, held.tensors[name]))
        except ModelError as refusal:
            refusals.append(refusal)
    # Where it fits one model's shapes, what is wrong beside them is what its owner can do something about.
    raise next((one for one in refusals if not one.message.startswith(_ANOTHER_MODEL)), refusals[0])


def _is_zero(file: BinaryIO, entry: TensorEntry) -> bool:
    file.seek(entry.start)
    return all(not _any(piece) for piece in _pieces(file, entry.stop - entry.start))


def _read_through(file: BinaryIO, held: TensorFile, reading: LoraReading) -> str:
    """Read the whole file, and return its hash.

    Raises:
        ModelError: A layer holds values that are not numbers, or no layer changes anything.
    """
    digest = hashlib.sha256()
    ups = {layer.up for layer in reading.layers}
    parts = ups | {layer.down for layer in reading.layers} | {layer.alpha for layer in reading.layers}
    ordered = sorted(held.tensors.items(), key=lambda one: (one[1].start, one[1].stop))
    digest.update(file.read(ordered[0][1].start))
    changes = False
    for name, entry in ordered:
        for piece in _pieces(file, entry.stop - entry.start):
            digest.update(piece)
            if name in parts and not _finite(piece, entry.dtype):
                raise ModelError(f"The LoRA holds values that are not numbers (layer {shown(name)}).")
            changes = changes or (name in ups and _any(piece))
    if not changes:
        raise ModelError("The LoRA changes nothing: all its layers lead out by zeros, as before the first step.")
    return digest.hexdigest()


def _pieces(file: BinaryIO, length: int) -> Iterator[bytes]:
    while length:
        piece = file.read(min(length, _PIECE_BYTES))
        if not piece:
            raise ModelError("The LoRA is cut short, or longer than it says.")
        length -= len(piece)
        yield piece


def _any(piece: bytes) -> bool:
    return piece.count(0) != len(piece)


# Of the types by IEEE 754 and OCP's 8-bit formats, little-endian: the value's bytes, a mask of the last one, and a mask
# of the one before it. Where all bits of both are set, the exponent is full: it is infinite or no number.
_FULL: Final = {"F64": (8, 0x7F, 0xF0), "F32": (4, 0x7F, 0x80), "BF16": (2, 0x7F, 0x80), "F16": (2, 0x7C, 0)}
_FULL_BYTES: Final = {mask: bytes(byte for byte in range(256) if byte & mask == mask) for mask in (0x7F, 0x7C)}
_OTHER_BYTES: Final = {mask: bytes(byte for byte in range(256) if byte & mask != mask) for mask in (0x7F, 0x7C)}


def _finite(piece: bytes, dtype: str) -> bool:
    """Tell whether all values are finite; in slices, so that the interpreter looks at hardly any by itself."""
    if dtype in {"F8_E4M3", "F8_E5M2"}:
        # E4M3 knows no infinity, and all bits set is no number.
        return not piece.translate(None, _OTHER_BYTES[0x7F if dtype == "F8_E4M3" else 0x7C])
    width, last, before = _FULL[dtype]
    top = piece[width - 1 :: width]
    if not top.translate(None, _OTHER_BYTES[last]):
        return True
    if not before:
        return False
    below = piece[width - 2 :: width]
    full = set(_FULL_BYTES[last])
    return not any(high in full and low & before == before for high, low in zip(top, below, strict=True))
