"""LoRAs of the library, as values. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from meshkit.loras import LORA_FOLDER

BIN_FOLDER = f"bin/{LORA_FOLDER}"
THUMBNAIL_FOLDER = "lora-thumbnails"
# What answers print before a path in the bin; no such folder exists anywhere.
PRINTED_BIN = "/data/bin/models/loras/"


class LoraState(enum.StrEnum):
    """Where a LoRA is."""

    STORED = "STORED"
    DELETED = "DELETED"


@dataclass(frozen=True, slots=True)
class LoraRecord:
    """A LoRA.

    Attributes:
        id: Its identifier, which callers do not see: they name it by its path.
        tenant: Tenant that owns it; the shared one for those that all may use.
        folder: What it shows, and where it lies.
        name: Its name in there.
        bin_name: Its name in the bin's folder; None while it is stored.
        filename: Name under which it was uploaded.
        bytes: Its size as stored.
        sha256: Hash of the file as stored, in hex.
        layout: How its layers are named.
        base_model: Model that it is for.
        rank: The rank of most of its layers.
        unmatched: Layers that the model lacks.
        trigger_word: Word that calls what it has learned.
        notes: Metadata of the file.
        thumbnail: Path of its picture among the owner's objects.
        training_id: Training that made it.
        state: Where it is.
        settled: Whether its object is where the state says.
        created_at: When it came.
        deleted_at: When it was moved to the bin.
    """

    id: UUID
    tenant: str
    folder: str
    name: str
    bin_name: str | None
    filename: str
    bytes: int
    sha256: str
    layout: str
    base_model: str
    rank: int
    unmatched: list[str]
    trigger_word: str | None
    notes: dict[str, str]
    thumbnail: str | None
    training_id: UUID | None
    state: LoraState
    settled: bool
    created_at: datetime
    deleted_at: datetime | None

    @property
    def path(self) -> str:
        """Path by which tasks name it."""
        return f"{self.folder}/{self.name}"

    @property
    def object_path(self) -> str:
        """Path of its object while it is stored."""
        return f"{LORA_FOLDER}/{self.path}"

    @property
    def bin_path(self) -> str:
        """Path of its object in the bin."""
        return f"{BIN_FOLDER}/{self.folder}/{self.bin_name}"
