"""A dataset on its way to the store and back: what was prepared once is not prepared again by the next attempt."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_RESOURCE
from atelier.training.v1.training_pb2 import DatasetImage, RejectedImage

from meshkit.errors import TRANSIENT, ErrorKind, MeshError
from meshkit.objects import ObjectStore
from meshkit.worker.handlers import TaskFailed
from meshkit.worker.pacing import Pauses
from services.training.trainer.dataset.domain import RejectedPicture
from services.training.trainer.dataset.manifest import DATASET, MANIFEST
from services.training.trainer.keeping import WholeFile

_AT_ONCE: Final = 4
_TRIES: Final = 4
_MOST_IMAGES: Final = 2_000  # bound of NoteDatasetRequest.images
_MOST_REJECTS: Final = 500
_UNREAD: Final = "A file of the training could not be read from the store."
_TYPES: Final = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".json": "application/json"}


class ObjectMissing(TaskFailed):
    """An object of the training is not in the store any more."""


def files_of(names: Iterable[str], local: Path, folder: str) -> list[WholeFile]:
    """Return the files of a dataset with their paths in the store; those that name the others come last.

    Args:
        names: Their names below both folders.
        local: The dataset's folder on the disk.
        folder: Its folder in the store, ending in `/`.
    """
    ordered = sorted(names, key=lambda name: (name == MANIFEST, name == DATASET, name))
    return [
        WholeFile(local / name, folder + name, _TYPES.get(Path(name).suffix, "application/octet-stream"))
        for name in ordered
    ]


def images_of(local: Path, folder: str) -> list[DatasetImage]:
    """Return the pictures of a dataset as its manifest has them, with their paths in the store."""
    manifest = json.loads((local / MANIFEST).read_text("utf-8"))
    return [_image(picture, folder) for picture in manifest["pictures"][:_MOST_IMAGES]]


def rejects_of(rejects: Sequence[RejectedPicture]) -> list[RejectedImage]:
    """Return the pictures that were left out."""
    return [RejectedImage(name=one.name, reason=one.reason) for one in rejects[:_MOST_REJECTS]]


async def bring_back(objects: ObjectStore, tenant: str, manifest_path: str, local: Path) -> None:
    """Make the dataset that an earlier attempt has stored a local folder.

    Raises:
        ObjectMissing: A file of it is not there.
        TaskFailed: It is not one.
    """
    folder = manifest_path.removesuffix(MANIFEST)
    await download(objects, tenant, folder + DATASET, local / DATASET)
    try:
        examples = json.loads((local / DATASET).read_text("utf-8"))["examples"]
        names = {name for one in examples for name in (one["image"], one.get("mask")) if name}
        if any(not _is_inside(name) for name in names):
            raise ValueError("name")
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable() from error
    places = asyncio.Semaphore(_AT_ONCE)

    async def bring(name: str) -> None:
        async with places:
            await download(objects, tenant, folder + name, local / name)

    await asyncio.gather(*(bring(name) for name in sorted(names)))


async def download(objects: ObjectStore, tenant: str, path: str, target: Path, pauses: Pauses | None = None) -> None:
    """Bring an object to the disk.

    Raises:
        ObjectMissing: It is not there.
        TaskFailed: The store does not answer, or refuses; RESOURCE.
    """
    pauses = pauses or Pauses()
    for tried in range(1, _TRIES + 1):
        try:
            await objects.download(tenant, path, target)  # which makes the folders above it
        except MeshError as error:
            if error.kind is ErrorKind.NOT_FOUND:
                raise ObjectMissing(_UNREAD, ERROR_CATEGORY_RESOURCE, retryable=False) from error
            if error.kind not in TRANSIENT or tried == _TRIES:
                raise TaskFailed(_UNREAD, ERROR_CATEGORY_RESOURCE, error.kind in TRANSIENT) from error
            await pauses.after(tried)
        else:
            return


def _image(picture: dict[str, Any], folder: str) -> DatasetImage:
    image = DatasetImage(
        name=picture["name"],
        path=folder + picture["file"],
        thumbnail_path=folder + picture["thumbnail"],
        caption=picture["caption"],
        width=picture["bucket"][0],
        height=picture["bucket"][1],
        warnings=picture["warnings"],
    )
    if picture["mask"]:
        image.mask_path = folder + picture["mask"]
    return image


def _is_inside(name: object) -> bool:
    path = PurePosixPath(str(name))
    return isinstance(name, str) and not path.is_absolute() and ".." not in path.parts


def _unreadable() -> TaskFailed:
    return TaskFailed("The dataset of the training could not be read.", ERROR_CATEGORY_RESOURCE, retryable=False)
