"""Between LoRAs and messages of the contract."""

from __future__ import annotations

from datetime import UTC, datetime

from atelier.training.v1 import lora_pb2

from meshkit.loras import PRINTED_ROOT
from meshkit.moments import assign
from services.training.library.domain import PRINTED_BIN, LoraRecord, LoraState


def to_upload(record: LoraRecord) -> lora_pb2.LoRAUploadResponse:
    """Return what an upload answers."""
    return lora_pb2.LoRAUploadResponse(
        file_path=PRINTED_ROOT + record.path,
        partial_path=record.path,
        filename=record.filename,
        file_size=record.bytes,
        upload_timestamp=_printed(record.created_at),
    )


def to_shared_upload(record: LoraRecord) -> lora_pb2.AdminLoRAUploadResponse:
    """Return what an administrator's upload answers."""
    return lora_pb2.AdminLoRAUploadResponse(
        file_path=PRINTED_ROOT + record.path,
        partial_path=record.path,
        filename=record.filename,
        file_size=record.bytes,
        entity_type=record.folder,
        upload_timestamp=_printed(record.created_at),
    )


def to_deletion(record: LoraRecord) -> lora_pb2.LoRADeleteResponse:
    """Return what a deletion answers."""
    assert record.deleted_at is not None
    return lora_pb2.LoRADeleteResponse(
        deleted=True,
        full_path=PRINTED_ROOT + record.path,
        bin_path=f"{PRINTED_BIN}{record.folder}/{record.bin_name}",
        timestamp=_printed(record.deleted_at),
    )


def to_lora(record: LoraRecord, *, shared: bool) -> lora_pb2.LibraryLora:
    """Return a LoRA as callers see it."""
    message = lora_pb2.LibraryLora(
        partial_path=record.path,
        file_path=PRINTED_ROOT + record.path,
        entity_type=record.folder,
        filename=record.filename,
        file_size=record.bytes,
        sha256=record.sha256,
        rank=record.rank,
        base_model=record.base_model,
        layout=record.layout,
        shared=shared,
        has_thumbnail=record.thumbnail is not None,
        metadata=record.notes,
        unmatched_layers=record.unmatched,
    )
    if record.trigger_word is not None:
        message.trigger_word = record.trigger_word
    if record.training_id is not None:
        message.training_id = str(record.training_id)
    assign(message.created_at, record.created_at)
    if record.state is LoraState.DELETED and record.deleted_at is not None:
        assign(message.deleted_at, record.deleted_at)
        message.bin_path = f"{PRINTED_BIN}{record.folder}/{record.bin_name}"
    return message


def _printed(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
