"""What providers made, as files of an attempt: fetched under guard, judged as a stranger's, brought to the size asked.

A picture is decoded in a child process first (`meshkit.images`). What passes is a PNG of exactly the size that the task
asks for. A provider's address is fetched as a caller's is, so that no answer leads into the mesh's own network.
"""

from __future__ import annotations

import asyncio
import base64
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_RESOURCE
from PIL import Image

from meshkit import tracing
from meshkit.errors import ErrorKind, MeshError
from meshkit.fetcher import FetchedContent, Fetcher
from meshkit.images.checks import ImageChecks
from meshkit.images.data import decode_data
from meshkit.images.limits import MAX_PIXELS, ImageLimits
from meshkit.logging import get_logger
from meshkit.worker.handlers import TaskFailed
from modelkit.errors import ModelError
from modelkit.pictures import Fit, framed, open_picture
from services.inference.providers.errors import Fault, ProviderError
from services.inference.tasktypes.pictures import save_png

_log = get_logger(__name__)

_TRIES = 3
_PAUSE_SECONDS = 0.3
_SIDE = 16_384


@dataclass(frozen=True, slots=True)
class MadePicture:
    """A picture of a result.

    Attributes:
        path: Its file, a PNG.
        width: Pixels.
        height: Pixels.
    """

    path: Path
    width: int
    height: int


class ProviderResults:
    """Makes files of what providers answer.

    Args:
        fetcher: Fetches addresses, guarded.
        checks: Judges pictures.
        max_bytes: Largest file.
        seconds: How long the fetching of one may take.
    """

    def __init__(self, fetcher: Fetcher, checks: ImageChecks, *, max_bytes: int, seconds: float) -> None:
        self._fetcher = fetcher
        self._checks = checks
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._limits = ImageLimits(max_bytes=max_bytes, max_side=_SIDE, max_pixels=MAX_PIXELS)

    async def fetch(self, provider: str, source: str, content_types: tuple[str, ...] = ()) -> FetchedContent:
        """Return what lies at an address, or in a data URL, that a provider answered.

        Args:
            provider: The provider's name, for sentences.
            source: The address.
            content_types: Beginnings of the media types that are accepted (`image/`); any where absent.

        Raises:
            ProviderError: `BROKEN` where it is not delivered now, `EMPTY` where it is nothing that may be taken.
        """
        if source[:5].lower() == "data:":
            content_type = source[5:].partition(",")[0].partition(";")[0].lower()
            try:
                return FetchedContent(decode_data(source, path="result", max_bytes=self._max_bytes), content_type, "")
            except MeshError as error:
                raise self._refused(provider, error) from None
        for tried in range(1, _TRIES + 1):
            try:
                return await self._fetcher.fetch_full(
                    source,
                    self._max_bytes,
                    self._seconds,
                    content_types=content_types,
                    path="result",
                    tenant=_tenant(),
                )
            except MeshError as error:
                if error.kind is not ErrorKind.UNAVAILABLE:
                    raise self._refused(provider, error) from None
                _log.info("result_not_fetched", provider=provider, reason=error.reason, tried=tried)
                if tried == _TRIES:
                    raise ProviderError(
                        Fault.BROKEN, provider, f"its result could not be fetched: {error.message}"
                    ) from None
            await asyncio.sleep(_PAUSE_SECONDS * tried)
        raise AssertionError("every way through the loop returns or raises")

    async def picture(
        self,
        provider: str,
        source: str | bytes | Path,
        path: Path,
        *,
        size: tuple[int, int] | None = None,
        how: Fit = "cover",
        alpha_of: Path | None = None,
    ) -> MadePicture:
        """Write a picture that a provider made as a PNG.

        Args:
            provider: The provider's name, for sentences.
            source: Its bytes, its address, a data URL, or a file, which is taken away; one that waits for its turn in
                a file takes no memory.
            path: Where it is written.
            size: Width and height that it is to have; its own where absent.
            how: How it is brought to the size.
            alpha_of: A picture whose transparency it is to have, scaled to its size.

        Raises:
            ProviderError: It cannot be had, or is no picture.
            TaskFailed: This worker has no room to decode it.
        """
        held = (await self.fetch(provider, source, ("image/",))).data if isinstance(source, str) else source
        image = partial(asyncio.to_thread, held.read_bytes) if isinstance(held, Path) else held
        made = path.with_name(f"{path.stem}-made.png")
        try:
            work = await self._checks.make_for_work(_tenant(), image, made, self._limits, path="result")
            if not work.made:
                await asyncio.to_thread(_put, held, made)
            plain = work.info.format == "PNG" or work.made
            try:
                found = await asyncio.to_thread(_write, made, path, _PictureForm(size, how, alpha_of), plain=plain)
            except ModelError as error:
                raise ProviderError(Fault.EMPTY, provider, error.message) from None
            return MadePicture(path, *found)
        except MeshError as error:
            if error.kind is ErrorKind.UNAVAILABLE:
                raise TaskFailed(error.message, ERROR_CATEGORY_RESOURCE, retryable=True) from None
            raise self._refused(provider, error) from None
        finally:
            made.unlink(missing_ok=True)

    async def judge(self, provider: str, data: bytes) -> None:
        """Check that a picture decodes, where it is kept as it is.

        Raises:
            ProviderError: It does not.
        """
        try:
            await self._checks.check(_tenant(), data, self._limits, path="result")
        except MeshError as error:
            if error.kind is ErrorKind.UNAVAILABLE:
                raise TaskFailed(error.message, ERROR_CATEGORY_RESOURCE, retryable=True) from None
            raise self._refused(provider, error) from None

    def _refused(self, provider: str, error: MeshError) -> ProviderError:
        _log.warning("result_not_taken", provider=provider, kind=error.kind.value, why=error.message)
        return ProviderError(Fault.EMPTY, provider)


def _put(source: bytes | Path, target: Path) -> None:
    if isinstance(source, Path):
        source.rename(target)
    else:
        target.write_bytes(source)


def _tenant() -> str:
    trace = tracing.current()
    return "" if trace is None else trace.tenant


@dataclass(frozen=True, slots=True)
class _PictureForm:
    """What a picture is to be like; see `ProviderResults.picture`."""

    size: tuple[int, int] | None
    how: Fit
    alpha_of: Path | None


def _write(source: Path, target: Path, form: _PictureForm, *, plain: bool) -> tuple[int, int]:
    if plain and form.alpha_of is None:
        with Image.open(source) as judged:  # its header: all of it was decoded once, in the child that judged it
            found = judged.size
        if form.size in (None, found):
            shutil.move(source, target)
            return found
    image = open_picture(source)
    image = framed(image, *(form.size or image.size), form.how)
    if form.alpha_of is not None and image.mode == "RGB":
        image = _with_alpha(image, open_picture(form.alpha_of))
    save_png(image, target)
    return image.size


def _with_alpha(image: Image.Image, base: Image.Image) -> Image.Image:
    if base.mode != "RGBA":
        return image
    image.putalpha(base.getchannel("A").resize(image.size))
    return image


async def data_url(path: Path) -> str:
    """Return a picture that the worker has taken in as a data URL: how pictures leave the house."""
    return await asyncio.to_thread(_data_url, path)


def _data_url(path: Path) -> str:
    kind = path.suffix.lstrip(".").lower() or "png"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


async def size_of(path: Path) -> tuple[int, int]:
    """Return width and height of a picture that the worker has taken in, as it is seen upright."""
    return await asyncio.to_thread(lambda: open_picture(path).size)
