"""The two files of a dataset: what the trainer reads, and what a person looks at."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from services.training.trainer.dataset.domain import (
    DatasetRequest,
    MadeDataset,
    RejectedPicture,
    shown_source,
    source_name,
)

DATASET: Final = "dataset.json"
MANIFEST: Final = "manifest.json"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class DatasetPicture:
    """A picture that is trained on.

    Attributes:
        index: Place of its original among the sources.
        caption: What it shows.
        size: Width and height of the original.
        facts: What was written of it: files, variant, bucket, crop, warnings.
    """

    index: int
    caption: str
    size: tuple[int, int]
    facts: Mapping[str, Any]


def write_dataset(
    request: DatasetRequest,
    pictures: Sequence[DatasetPicture],
    rejects: Sequence[RejectedPicture],
    folder: Path,
    described_by: str,
) -> MadeDataset:
    """Write both files, and remove what belongs to no picture.

    Args:
        request: What was asked for.
        pictures: The pictures, in their order.
        rejects: Those that are not trained on.
        folder: The dataset's folder.
        described_by: What wrote the captions of the strategy `auto`; empty for other strategies.
    """
    examples = [
        {
            "image": one.facts["file"],
            "caption": one.caption,
            "bucket": one.facts["bucket"],
            "mask": one.facts["mask"],
        }
        for one in pictures
    ]
    digest = _hash(examples, folder)
    counts = Counter(tuple(one.facts["bucket"]) for one in pictures)
    head = {"version": _VERSION, "hash": digest, "resolution": request.resolution}
    manifest = {
        **head,
        "multiple": request.multiple,
        "trigger_word": request.trigger_word,
        "captioning_strategy": request.strategy,
        "described_by": described_by,
        "total_files": len(request.sources),
        "pictures": [_shown(one, request) for one in pictures],
        "rejects": [one.as_json() for one in rejects],
        "buckets": [{"width": size[0], "height": size[1], "count": count} for size, count in sorted(counts.items())],
    }
    dataset = {**head, "trigger_word": request.trigger_word, "examples": examples}
    for name, content in ((MANIFEST, manifest), (DATASET, dataset)):
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    wanted = {name for one in pictures for key in ("file", "thumbnail", "mask") if (name := one.facts[key])}
    for file in [file for part in ("images", "masks", "thumbnails") for file in (folder / part).glob("*")]:
        if file.relative_to(folder).as_posix() not in wanted:
            file.unlink()
    return MadeDataset((*sorted(wanted), MANIFEST, DATASET), digest, len(pictures), tuple(rejects))


def _hash(examples: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Return the hash of files, captions, sizes and masks; `modelkit.training.dataset` does the same."""
    digest = hashlib.sha256()
    for one in examples:
        facts = [_file_hash(folder, one["image"]), one["caption"], one["bucket"], _file_hash(folder, one["mask"])]
        digest.update(json.dumps(facts).encode() + b"\n")
    return digest.hexdigest()


def _file_hash(folder: Path, name: str | None) -> str | None:
    return None if name is None else hashlib.sha256((folder / name).read_bytes()).hexdigest()


def _shown(one: DatasetPicture, request: DatasetRequest) -> dict[str, Any]:
    source = request.sources[one.index]
    return {
        "index": one.index,
        "name": source_name(source, one.index),
        "source": shown_source(source),
        "caption": one.caption,
        "width": one.size[0],
        "height": one.size[1],
        **one.facts,
    }
