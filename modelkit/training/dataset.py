"""The pictures of a training, finished: cut to their bucket's size, captioned, with a mask where one is wanted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelkit.errors import ModelErrorKind
from modelkit.training.errors import TrainingFailed

DATASET_NAME = "dataset.json"


@dataclass(frozen=True, slots=True)
class Example:
    """One picture. A flipped or otherwise cut one is an example of its own.

    Attributes:
        image: File of the picture.
        caption: What it shows; `[trigger]` stands for the trigger word.
        bucket: Width and height that it is trained at, in pixels.
        mask: File of its mask: white counts, black hardly; None where all of it counts.
    """

    image: Path
    caption: str
    bucket: tuple[int, int]
    mask: Path | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """All pictures of a training, in their order.

    Attributes:
        examples: The pictures.
        hash: Names their content: pictures, captions, sizes and masks, in this order.
    """

    examples: tuple[Example, ...]
    hash: str

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Dataset:
        """Return a dataset of these pictures.

        Raises:
            TrainingFailed: A picture's file is not there.
        """
        digest = hashlib.sha256()
        try:
            for example in examples:
                facts = [
                    hashlib.sha256(example.image.read_bytes()).hexdigest(),
                    example.caption,
                    list(example.bucket),
                    hashlib.sha256(example.mask.read_bytes()).hexdigest() if example.mask else None,
                ]
                digest.update(json.dumps(facts).encode() + b"\n")
        except OSError as error:
            raise _unreadable() from error
        return cls(tuple(examples), digest.hexdigest())

    @classmethod
    def read(cls, path: Path) -> Dataset:
        """Read a `dataset.json`; its paths are relative to its folder, and stay inside.

        Raises:
            TrainingFailed: It is not a dataset, or a file of it is not there.
        """
        root = path.parent.resolve()

        def inside(name: str) -> Path:
            file = (root / name).resolve()
            if not file.is_relative_to(root):
                raise ValueError("path")
            return file

        try:
            entries = json.loads(path.read_text("utf-8"))["examples"]
            examples = [
                Example(
                    inside(entry["image"]),
                    str(entry["caption"]),
                    (int(entry["bucket"][0]), int(entry["bucket"][1])),
                    inside(entry["mask"]) if entry.get("mask") else None,
                )
                for entry in entries
            ]
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise _unreadable() from error
        return cls.of(examples)

    def write(self, folder: Path) -> Path:
        """Write `dataset.json` into the folder that holds the files; return its path."""
        root = folder.resolve()
        entries = [
            {
                "image": example.image.resolve().relative_to(root).as_posix(),
                "caption": example.caption,
                "bucket": list(example.bucket),
                "mask": example.mask.resolve().relative_to(root).as_posix() if example.mask else None,
            }
            for example in self.examples
        ]
        path = folder / DATASET_NAME
        path.write_text(json.dumps({"examples": entries, "hash": self.hash}, indent=2) + "\n", "utf-8")
        return path


def _unreadable() -> TrainingFailed:
    return TrainingFailed(ModelErrorKind.RESOURCE, "The dataset of the training could not be read.")
