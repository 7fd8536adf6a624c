"""Make the dataset of a training, in stages that are counted: downloading, validating, transforming, captioning.

The last stage of preprocessing, caching, is the trainer's own.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final, Protocol

from meshkit.errors import TRANSIENT, MeshError
from meshkit.logging import get_logger
from meshkit.worker.handlers import InputRef
from services.training.trainer.dataset.captions import caption_for
from services.training.trainer.dataset.domain import (
    DatasetRefused,
    DatasetRequest,
    MadeDataset,
    RejectedPicture,
    Stage,
    StageReport,
    is_address,
    shown_source,
    source_name,
)
from services.training.trainer.dataset.manifest import DatasetPicture, write_dataset
from services.training.trainer.dataset.preparing import BroughtPicture, PictureWork, PreparedPictures

_log = get_logger(__name__)

_FETCHED_AT_ONCE: Final = 4
_ASKED_AT_ONCE: Final = 4
_TRIES: Final = 3
_PAUSE_SECONDS: Final = 0.5
_WORK: Final = ".work"
LOCAL: Final = "local"
"""What the manifest calls the describer of the mesh's own."""

Report = Callable[[StageReport], Awaitable[None]]


class PictureInputs(Protocol):
    """Brings pictures in and judges them (`meshkit.worker.inputs.Inputs`)."""

    def fetched(
        self, tenant: str, refs: Sequence[InputRef], folder: Path, refused: MutableMapping[str, MeshError] | None = None
    ) -> AbstractAsyncContextManager[Mapping[str, Path]]:
        """Yield local files of `refs`, by name; those of images stay."""
        ...


class CaptionWriter(Protocol):
    """A service that looks at pictures and says what they show (`caption_service.CaptionService`)."""

    @property
    def model(self) -> str:
        """Name of its model."""
        ...

    async def describe(self, picture: Path) -> str | None:
        """Return what a PNG shows, in one sentence; None where the service does not say."""
        ...


async def make_dataset(
    request: DatasetRequest,
    folder: Path,
    *,
    tenant: str,
    inputs: PictureInputs,
    report: Report,
    captions: CaptionWriter | None = None,
    work: PictureWork | None = None,
    pause_seconds: float = 1.0,
) -> MadeDataset:
    """Bring a training's pictures in, judge and transform them, have captions written, and write the dataset.

    Cancelling it ends its child and leaves the folder to its owner. Making it again from the same pictures gives the
    same files and the same hash.

    Args:
        request: What the dataset is made of, and how.
        folder: Where it is written; empty, and the attempt's own.
        tenant: Whose pictures they are.
        inputs: Brings them in; the worker's own.
        report: Hears how far it is, at most twice a second and at the end of each stage.
        captions: Writes captions for the strategy `auto`; the mesh's own describer does where None, and for pictures
            of which the service says nothing.
        work: Runs the child.
        pause_seconds: Wait before an address that failed is asked again.

    Raises:
        DatasetRefused: No picture is left; its message names all of them with the reasons. VALIDATION.
        DatasetFailed: This worker cannot work on pictures. RESOURCE.
        MeshError: The store is away; another attempt has a better chance.
    """
    making = _DatasetMaking(request, folder, report, work or PictureWork())
    temporary = folder / _WORK
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        brought = await making.download(tenant, inputs, temporary, pause_seconds)
        prepared = await making.prepare(brought, temporary)
        texts = await making.describe(prepared, temporary, captions)
        return await making.finish(prepared, texts, captions)
    finally:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, temporary, ignore_errors=True))


class _DatasetMaking:
    """One dataset in the making."""

    def __init__(self, request: DatasetRequest, folder: Path, report: Report, work: PictureWork) -> None:
        self._request = request
        self._folder = folder
        self._report = report
        self._work = work
        self._rejects: dict[int, RejectedPicture] = {}
        self._told: tuple[Stage | None, float] = (None, 0.0)

    async def download(
        self, tenant: str, inputs: PictureInputs, folder: Path, pause_seconds: float
    ) -> list[BroughtPicture]:
        """Bring the pictures in; those that cannot be had, or are no pictures, are rejected."""
        sources = self._request.sources
        brought: dict[int, BroughtPicture] = {}
        places = asyncio.Semaphore(_FETCHED_AT_ONCE)
        done = 0

        async def bring(index: int, source: str) -> None:
            nonlocal done
            async with places:
                ref = InputRef(f"source_images[{index}]", source, "image", required=False)
                found = await _brought(tenant, inputs, ref, folder, pause_seconds)
            if isinstance(found, MeshError):
                self._reject(index, _reason(found))
            else:
                brought[index] = BroughtPicture(index, source_name(source, index), found)
            done += 1
            await self._progress("downloading", done, len(sources))

        await self._progress("downloading", 0, len(sources))
        try:
            async with asyncio.TaskGroup() as group:
                for index, source in enumerate(sources):
                    group.create_task(bring(index, source))
        except* MeshError as errors:
            raise errors.exceptions[0] from None
        self._require(len(brought))
        return [brought[index] for index in sorted(brought)]

    async def prepare(self, brought: Sequence[BroughtPicture], temporary: Path) -> PreparedPictures:
        """Judge and transform the pictures."""
        prepared = await self._work.prepare(self._request, brought, self._folder, temporary, self._progress)
        for index in sorted(prepared.rejected):
            prepared.made.pop(index, None)
            self._reject(index, prepared.rejected[index])
        self._require(len(prepared.made))
        return prepared

    async def describe(
        self, prepared: PreparedPictures, temporary: Path, captions: CaptionWriter | None
    ) -> dict[int, str]:
        """Return what each picture shows, where captions say so."""
        total = len(prepared.made)
        await self._progress("captioning", 0, total)
        if self._request.strategy != "auto":
            return {}
        looks = {index: temporary / f"look-{index}.png" for index in prepared.made}
        texts: dict[int, str] = {}
        if captions is not None:
            await self._ask(captions, looks, texts)
        left = {index: look for index, look in looks.items() if index not in texts}
        if left:
            if captions is not None:
                _log.warning("captions_not_written_by_service", pictures=len(left), model=captions.model)

            async def done(stage: Stage, count: int, _total: int) -> None:
                await self._progress(stage, total - len(left) + count, total)

            texts |= await self._work.describe(left, temporary, done)
        return texts

    async def _ask(self, captions: CaptionWriter, looks: Mapping[int, Path], texts: dict[int, str]) -> None:
        places = asyncio.Semaphore(_ASKED_AT_ONCE)

        async def ask(index: int, look: Path) -> None:
            async with places:
                text = await captions.describe(look)
            if text is not None:
                texts[index] = text
                await self._progress("captioning", len(texts), len(looks))

        async with asyncio.TaskGroup() as group:
            for index, look in looks.items():
                group.create_task(ask(index, look))

    async def finish(
        self, prepared: PreparedPictures, texts: Mapping[int, str], captions: CaptionWriter | None
    ) -> MadeDataset:
        """Write the dataset's files."""
        request = self._request
        pictures = []
        for index in sorted(prepared.made):
            facts = prepared.made[index]
            caption = caption_for(request.strategy, request.trigger_word, request.prompt, texts.get(index, ""))
            size = facts["width"], facts["height"]
            for variant in facts["variants"]:
                if request.strategy == "auto" and index not in texts:
                    variant["warnings"].append("could not be described: its caption is the trigger word")
                pictures.append(DatasetPicture(index, caption, size, variant))
        described_by = "" if request.strategy != "auto" else captions.model if captions is not None else LOCAL
        made = await asyncio.to_thread(write_dataset, request, pictures, self._rejected, self._folder, described_by)
        await self._progress("captioning", len(prepared.made), len(prepared.made))
        _log.info("dataset_made", pictures=made.pictures, rejects=len(made.rejects), hash=made.hash)
        return made

    @property
    def _rejected(self) -> tuple[RejectedPicture, ...]:
        return tuple(self._rejects[index] for index in sorted(self._rejects))

    def _reject(self, index: int, reason: str) -> None:
        source = self._request.sources[index]
        self._rejects[index] = RejectedPicture(index, source_name(source, index), shown_source(source), reason)

    def _require(self, left: int) -> None:
        if not left:
            raise DatasetRefused(self._rejected)

    async def _progress(self, stage: Stage, done: int, total: int) -> None:
        before, at = self._told
        now = time.monotonic()
        if stage == before and done < total and now - at < _PAUSE_SECONDS:
            return
        self._told = (stage, now)
        await self._report(StageReport(stage, done, total, self._rejected))


async def _brought(
    tenant: str, inputs: PictureInputs, ref: InputRef, folder: Path, pause_seconds: float
) -> Path | MeshError:
    """Return the local file of a picture, or what is wrong with it.

    Raises:
        MeshError: The mesh's own store is away.
    """
    for left in reversed(range(_TRIES)):
        refused: dict[str, MeshError] = {}
        async with inputs.fetched(tenant, [ref], folder, refused) as files:
            if ref.name in files:
                return files[ref.name]
        error = refused[ref.name]
        if not left or not is_address(ref.source) or error.kind not in TRANSIENT:
            return error
        await asyncio.sleep(pause_seconds)
    raise AssertionError("every way through the loop returns or raises")


def _reason(error: MeshError) -> str:
    told = error.violations[0].message if error.violations else error.message
    return told.rstrip(".")
