"""The containers of `torch.save`: a zip since torch 1.6, and a row of pickles before.

Nothing is extracted and nothing decompressed: torch stores its entries plain, so an entry that is compressed is
refused, and no small file can become a large one.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from services.training.library.conversion.pickles import RefusedPickleError, Storage, Tensor, read_pickle

_LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL: Final = 1001
_MAX_ENTRIES: Final = 50_000
_MAX_PICKLE_BYTES: Final = 32 << 20
ELEMENT_BYTES: Mapping[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a storage lies in the file.

    Attributes:
        start: First byte.
        bytes: How many.
    """

    start: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Archive:
    """What a file holds.

    Attributes:
        content: What its pickle describes.
        places: Its storages by name.
    """

    content: Any
    places: Mapping[str, Place]


def read_archive(file: BinaryIO, size: int) -> Archive:
    """Return what a file of `torch.save` holds.

    Raises:
        RefusedPickleError: It holds something else than tensors, or is none.
    """
    head = file.read(4)
    file.seek(0)
    if head == b"PK\x03\x04":
        return _zip(file, size)
    return _legacy(file, size)


def _zip(file: BinaryIO, size: int) -> Archive:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeError, struct.error, OSError):
        raise RefusedPickleError("its archive is damaged") from None
    if len(entries) > _MAX_ENTRIES:
        raise RefusedPickleError("it holds too many entries")
    pickle: Place | None = None
    places: dict[str, Place] = {}
    for entry in entries:
        folder, _, name = entry.filename.partition("/")
        place = _content(file, entry, size)
        if name.startswith("data/"):
            places[name.removeprefix("data/")] = place
        elif name == "byteorder":
            file.seek(place.start)
            if file.read(min(place.bytes, 16)) != b"little":
                raise RefusedPickleError("it was written by a machine of another kind")
        elif name == "data.pkl" and folder:
            pickle = place
    if pickle is None or pickle.bytes > _MAX_PICKLE_BYTES:
        raise RefusedPickleError("it holds no pickle of torch, or one that is too long")
    file.seek(pickle.start)
    return Archive(read_pickle(file), places)


def _content(file: BinaryIO, entry: zipfile.ZipInfo, size: int) -> Place:
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
        raise RefusedPickleError("its entries are compressed or encrypted")
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise RefusedPickleError("its archive is damaged")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = entry.header_offset + 30 + name_length + extra_length
    if start + entry.file_size > size:
        raise RefusedPickleError("its archive is cut short")
    return Place(start, entry.file_size)


def _legacy(file: BinaryIO, size: int) -> Archive:
    if file.read(1) != b"\x80":
        raise RefusedPickleError("it is no file of torch")
    file.seek(0)
    if read_pickle(file) != _LEGACY_MAGIC or read_pickle(file) != _LEGACY_PROTOCOL:
        raise RefusedPickleError("it is no file of torch")
    told = read_pickle(file)
    if not isinstance(told, dict) or told.get("little_endian") is not True:
        raise RefusedPickleError("it was written by a machine of another kind")
    content, keys = read_pickle(file), read_pickle(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise RefusedPickleError("it is damaged")
    storages = {storage.key: storage for storage in _storages(content)}
    places: dict[str, Place] = {}
    for key in keys:
        count = file.read(8)
        storage = storages.get(key)
        if len(count) < 8 or storage is None or storage.dtype is None:
            raise RefusedPickleError("it is damaged")
        (elements,) = struct.unpack("<q", count)
        length = elements * ELEMENT_BYTES[storage.dtype]
        if elements < 0 or file.tell() + length > size:
            raise RefusedPickleError("it is cut short")
        places[key] = Place(file.tell(), length)
        file.seek(length, 1)
    return Archive(content, places)


def _storages(content: Any) -> list[Storage]:
    """Return the storages that are named anywhere; without recursion, for a file may be nested as it likes."""
    found, left, seen = list[Storage](), [content], set[int]()
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            found.append(value.storage)
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left.extend(value.values() if isinstance(value, dict) else value)
    return found
