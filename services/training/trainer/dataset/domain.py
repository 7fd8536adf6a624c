"""What is asked of a dataset, what comes of it, and how its making ends early; pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import unquote, urlsplit

from services.training.trainer.dataset.captions import Strategy
from services.training.trainer.dataset.transforms import PictureTransform

Stage = Literal["downloading", "validating", "transforming", "captioning", "caching"]
STAGES: Final[tuple[Stage, ...]] = ("downloading", "validating", "transforming", "captioning", "caching")
"""Stages of preprocessing in their order. The trainer's core does the last one."""
MaskKind = Literal["none", "person", "garment"]
MOST_ENLARGED: Final = 2.0
"""A picture that would have to be enlarged by more than this is too small."""

_MAX_NAME: Final = 120
_MAX_MESSAGE: Final = 4000
_LONGEST_PATH: Final = 1024  # a longer text is no path in storage, so it can only be base64


@dataclass(frozen=True, slots=True)
class DatasetRequest:
    """What a dataset is made of, and how.

    Attributes:
        sources: The pictures: storage paths, http(s) URLs, data URLs or base64.
        trigger_word: What the new thing is called.
        resolution: Side in pixels of the square that the model is trained at.
        multiple: Sides of pictures are multiples of it.
        max_side: Largest side that the model takes; twice the resolution where None.
        transforms: What is done to the pictures, in this order.
        strategy: How captions are made.
        prompt: The caption, for the strategy `prompt`.
        masks: What a masked loss looks at: people, the garment, or everything.
        seed: What jittered colours are drawn by.
    """

    sources: tuple[str, ...]
    trigger_word: str
    resolution: int
    multiple: int
    max_side: int | None = None
    transforms: tuple[PictureTransform, ...] = ()
    strategy: Strategy = "trigger_only"
    prompt: str = ""
    masks: MaskKind = "none"
    seed: int = 42

    @property
    def longest(self) -> int:
        """Largest side of a picture in pixels."""
        return self.max_side or 2 * self.resolution


@dataclass(frozen=True, slots=True)
class RejectedPicture:
    """A picture that is not trained on.

    Attributes:
        index: Its place among the sources.
        name: What it is called.
        source: Where it came from; empty where it came as data.
        reason: Why, as the end of a sentence that begins with its name.
    """

    index: int
    name: str
    source: str
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Return it as the manifest has it."""
        return {"index": self.index, "name": self.name, "source": self.source, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class StageReport:
    """How far the making is.

    Attributes:
        stage: What is done now.
        processed: Pictures that this stage is done with.
        total: Pictures that this stage has in all.
        rejects: All pictures that were rejected so far.
    """

    stage: Stage
    processed: int
    total: int
    rejects: tuple[RejectedPicture, ...] = ()


@dataclass(frozen=True, slots=True)
class MadeDataset:
    """A dataset that is whole.

    Attributes:
        files: Its files, relative to its folder, `dataset.json` and `manifest.json` among them.
        hash: Names its content.
        pictures: Pictures that are trained on; a flipped one counts too.
        rejects: Pictures that are not.
    """

    files: tuple[str, ...]
    hash: str
    pictures: int
    rejects: tuple[RejectedPicture, ...]


class DatasetRefused(Exception):  # noqa: N818 -- an outcome, as TaskFailed is
    """No picture is left to train on. The message names all of them; another attempt would meet the same.

    Args:
        rejects: The pictures.
    """

    def __init__(self, rejects: Sequence[RejectedPicture]) -> None:
        told = "; ".join(f"{one.name} {one.reason}" for one in rejects)
        message = f"None of the pictures can be trained on: {told}."
        if len(message) > _MAX_MESSAGE:
            message = f"{message[: _MAX_MESSAGE - 40]}... ({len(rejects)} pictures in all)."
        super().__init__(message)
        self.message = message
        self.rejects = tuple(rejects)


class DatasetFailed(Exception):  # noqa: N818 -- likewise
    """The worker cannot make datasets now; another attempt, or another worker, may.

    Args:
        message: One sentence.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def shown_source(source: str) -> str:
    """Return where a picture came from, as others may read it: no data, no credentials, no query of an address."""
    if is_address(source):
        parts = urlsplit(source)
        return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
    return "" if _is_data(source) else source


def source_name(source: str, index: int) -> str:
    """Return what a picture is called: the last part of its path or address, else its place among the sources."""
    fallback = f"source_images[{index}]"
    if _is_data(source):
        return fallback
    path = unquote(urlsplit(source).path) if is_address(source) else source
    name = re.sub(r"[^\w .()+@-]+", "_", path.rstrip("/").rpartition("/")[2])
    return name[:_MAX_NAME] or fallback


def is_address(source: str) -> bool:
    """Tell whether a source is an http(s) address."""
    return source[:8].lower().startswith(("http://", "https://"))


def _is_data(source: str) -> bool:
    if is_address(source):
        return False
    # A path in storage has a dot or a slash among its first characters; base64 may have a slash, but never a dot.
    return source[:5].lower() == "data:" or len(source) > _LONGEST_PATH or "." not in source
