"""Pictures that are to be judged: got from where the request says, checked, and opened."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meshkit.errors import ErrorKind, MeshError, exhausted, invalid, unavailable
from meshkit.fetcher import Fetcher
from meshkit.images.checks import ImageChecks
from meshkit.images.data import decode_data
from meshkit.images.limits import ImageLimits
from meshkit.logging import get_logger
from meshkit.objects import ObjectStore
from meshkit.paths import normalise_path
from meshkit.places import TenantPlaces
from meshkit.staging import STAGING_SCHEME, is_staged
from modelkit.errors import ModelError
from modelkit.pictures import open_picture, over_white

if TYPE_CHECKING:
    from PIL import Image

_log = get_logger(__name__)

DATA, ADDRESS = "evaluation.image_data", "evaluation.image_url"
_REMOTE = ("http://", "https://")
# Networks and models look at no more of it.
_MAX_SIDE = 2048


@dataclass(frozen=True, slots=True)
class PictureSource:
    """Where a picture is.

    Attributes:
        data: Base64, a data URL, or what the gateway staged; empty where the address counts.
        address: An http(s) address, or a path in storage.
    """

    data: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class PictureRoom:
    """How many pictures there may be.

    Attributes:
        at_once: Pictures that are judged at the same time.
        per_tenant: Those among them of one tenant.
        waiting: Pictures that wait for their turn; more are refused.
        wait_seconds: How long one waits.
    """

    at_once: int
    per_tenant: int
    waiting: int
    wait_seconds: float


class Pictures:
    """Gets pictures, a bounded number at a time.

    Args:
        checks: The one door by which pictures are decoded.
        fetcher: Fetches addresses.
        objects: The object store; None where there is none.
        limits: What a picture may be.
        fetch_seconds: How long an address may take.
        room: How many there may be.
    """

    def __init__(
        self,
        checks: ImageChecks,
        fetcher: Fetcher,
        objects: ObjectStore | None,
        *,
        limits: ImageLimits,
        fetch_seconds: float,
        room: PictureRoom,
    ) -> None:
        self._checks = checks
        self._fetcher = fetcher
        self._objects = objects
        self._limits = limits
        self._fetch_seconds = fetch_seconds
        self._room = room
        self._places = TenantPlaces(room.at_once, room.per_tenant)
        self._waiting = 0
        # A large picture takes hundreds of megabytes until it is reduced: one at a time.
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def opened(self, tenant: str, source: PictureSource) -> AsyncIterator[Image.Image]:
        """Open a picture, upright, as RGB over white, of 2048 pixels a side at most; hold a place meanwhile.

        Raises:
            MeshError: `INVALID` for what is no picture and for what is not there, `TOO_LARGE`, `UNAVAILABLE` where it
                cannot be got now, `EXHAUSTED` where too many wait.
        """
        try:
            await self._take(tenant)
            try:
                yield await self._open(tenant, source)
            finally:
                self._places.give_back(tenant)
        finally:
            if source.data.startswith(STAGING_SCHEME):
                await asyncio.shield(self._forget(tenant, source.data))

    async def _take(self, tenant: str) -> None:
        if self._waiting >= self._room.waiting:
            raise exhausted("Too many pictures wait to be evaluated", reason="EVALUATIONS_WAITING")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._room.wait_seconds):
                await self._places.take(tenant)
        except TimeoutError:
            raise unavailable("Too many pictures wait to be evaluated", reason="NO_ROOM") from None
        finally:
            self._waiting -= 1

    async def _open(self, tenant: str, source: PictureSource) -> Image.Image:
        path = DATA if source.data else ADDRESS
        data = await self._bytes(tenant, source)
        with tempfile.TemporaryDirectory(prefix="atelier-evaluation-") as folder:
            made = Path(folder) / "made.png"
            work = await self._checks.make_for_work(tenant, data, made, self._limits, path=path)
            file = made
            if not work.made:
                file = Path(folder) / "given"
                await asyncio.to_thread(file.write_bytes, data)
            try:
                async with self._opening:
                    return await asyncio.to_thread(_read, file)
            except ModelError as error:
                raise invalid(path, error.message, "image_broken") from None

    async def _bytes(self, tenant: str, source: PictureSource) -> bytes:
        most = self._limits.max_bytes
        if source.data.startswith(STAGING_SCHEME):
            return await self._stored(tenant, source.data.removeprefix(STAGING_SCHEME), DATA, staged=True)
        if source.data:
            return await asyncio.to_thread(lambda: decode_data(source.data, path=DATA, max_bytes=most))
        if source.address[:8].lower().startswith(_REMOTE):
            return await self._fetcher.fetch(
                source.address,
                most,
                self._fetch_seconds,
                content_types=("image/",),
                path=ADDRESS,
                tenant=tenant,
            )
        return await self._stored(tenant, source.address, ADDRESS, staged=False)

    async def _stored(self, tenant: str, text: str, member: str, *, staged: bool) -> bytes:
        missing = invalid(member, "There is no such image in storage.", "not_found")
        if self._objects is None:
            raise missing
        try:
            path = normalise_path(text)
        except MeshError:
            raise missing from None
        if is_staged(path) is not staged:
            raise missing
        try:
            return await self._objects.get(tenant, path, self._limits.max_bytes)
        except MeshError as error:
            if error.kind is ErrorKind.NOT_FOUND:
                raise missing from None
            raise

    async def _forget(self, tenant: str, text: str) -> None:
        """Delete what was staged; what cannot be deleted now is left to the sweeper."""
        if self._objects is None:
            return
        try:
            path = normalise_path(text.removeprefix(STAGING_SCHEME))
            if is_staged(path):
                await self._objects.delete(tenant, path)
        except MeshError as error:
            _log.warning("upload_left_to_sweeper", cause=error.reason)


def _read(file: Path) -> Image.Image:
    picture = open_picture(file)
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE), reducing_gap=3.0)
    return over_white(picture)
