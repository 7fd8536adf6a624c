"""Inputs of tasks: images as data, uploads, addresses or paths, one or a list, and LoRA adapters.

Everything is checked before the task exists, each item of a list by itself. Data and uploads become objects below the
task's prefix, so that rows hold paths and never bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from meshkit.catalog import Form, InputSpec, SourceSpec, TaskTypeSpec
from meshkit.copies import open_copy
from meshkit.errors import ErrorKind, MeshError, invalid, too_large
from meshkit.fetcher import Fetcher
from meshkit.images.checks import ImageChecks
from meshkit.images.data import decode_data
from meshkit.loras import LORA_FOLDER, library_path
from meshkit.objects import ObjectStore
from meshkit.paths import normalise_path
from meshkit.staging import STAGING_SCHEME, is_staged
from services.tasks.catalog import prefix_of

_T = TypeVar("_T")
# Below this, decoding costs less than handing the work to a thread.
_INLINE_BYTES = 32 * 1024
# What is longer and has no dot is an image in base64 and no name.
_LONGEST_NAME = 64


@dataclass(frozen=True, slots=True)
class AcceptedInput:
    """An image that passed; an item of a list is one by itself.

    Attributes:
        input: The input that it is, or is an item of.
        path: Path in storage or address.
        data: Bytes to write at the path, where the caller sent them.
        staged: Upload to move to the path, where it was staged.
        content_type: Media type of the object.
    """

    input: InputSpec
    path: str
    data: bytes | None = None
    staged: str | None = None
    content_type: str = ""

    @property
    def is_written(self) -> bool:
        """Whether an object is written for it."""
        return self.data is not None or self.staged is not None


class InputValidator:
    """Checks inputs and moves them into place.

    Args:
        objects: The object store.
        fetcher: Checks addresses.
        checks: Judges images.
        shared_tenant: Tenant whose LoRA adapters everyone may use.
    """

    def __init__(self, objects: ObjectStore, fetcher: Fetcher, checks: ImageChecks, shared_tenant: str) -> None:
        self._objects = objects
        self._fetcher = fetcher
        self._checks = checks
        self._shared = shared_tenant

    async def accept(self, task_type: TaskTypeSpec, detail: Any, tenant: str, task_id: UUID) -> list[AcceptedInput]:
        """Check the images of a task.

        Args:
            task_type: Its type.
            detail: Its Create message.
            tenant: Tenant of the task.
            task_id: Identifier it will have.

        Returns:
            The images that are set, not yet written; items of a list in its order.

        Raises:
            MeshError: `INVALID` with the member's path, such as `task.editing.reference_images[2]`.
        """
        folder = f"{prefix_of(task_type.name, task_id)}inputs/"
        return [
            await self._accept_image(given, tenant)
            for image in task_type.inputs
            for given in _given(task_type, image, detail, folder)
        ]

    async def write(self, tenant: str, inputs: list[AcceptedInput]) -> None:
        """Write the objects of accepted inputs."""
        for item in inputs:
            if item.data is not None:
                await self._objects.put(tenant, item.path, item.data, item.content_type)
            elif item.staged is not None:
                await self._objects.copy(tenant, item.staged, item.path)

    async def settle(self, tenant: str, inputs: list[AcceptedInput]) -> None:
        """Delete the uploads that became inputs, once the task is committed."""
        for item in inputs:
            if item.staged is not None:
                await self._objects.delete(tenant, item.staged)

    async def discard(self, tenant: str, task_type: str, task_id: UUID) -> None:
        """Delete what was written for a task that did not come to be."""
        await self._objects.delete_prefix(tenant, f"{prefix_of(task_type, task_id)}inputs")

    async def check_adapters(self, task_type: TaskTypeSpec, message: Any, tenant: str, where: str) -> list[str]:
        """Check the LoRA adapters that a message names.

        Args:
            task_type: The type.
            message: A Create message or an update.
            tenant: Tenant of the task.
            where: Path of the message in the request, for the error.

        Returns:
            The paths within the library, for affinity.

        Raises:
            MeshError: `INVALID` for a path that leads elsewhere or names no adapter.
        """
        named = [(field, getattr(message, field)) for field in task_type.adapters if message.HasField(field)]
        found = []
        for field, value in named:
            path = f"{where}.{field}"
            normal = at(path, partial(library_path, value))
            found.append(normal)
            if not await self._adapter_exists(tenant, f"{LORA_FOLDER}/{normal}"):
                raise invalid(path, f"Unknown LoRA {value!r}", "unknown_lora")
        return found

    def check_address(self, url: str, path: str) -> None:
        """Check an http(s) address.

        A private address is refused now; a name is resolved when it is fetched, and checked again then, because its
        answer may change meanwhile.

        Args:
            url: The address.
            path: Path of the member, for the error.

        Raises:
            MeshError: `INVALID`.
        """
        self._fetcher.check(url, path=path)

    async def check_reference(self, value: str, tenant: str, path: str) -> str:
        """Check an address or a path in storage.

        Returns:
            The value, a path in its one form.
        """
        if _is_url(value):
            self.check_address(value, path)
            return value
        normal = at(path, lambda: normalise_path(value))
        if await self._objects.stat(tenant, normal) is None:
            raise invalid(path, f"There is no object {normal!r} in storage", "unknown_object")
        return normal

    async def _adapter_exists(self, tenant: str, path: str) -> bool:
        if await self._objects.stat(tenant, path) is not None:
            return True
        return await self._objects.stat(self._shared, path) is not None

    async def _accept_image(self, given: _Given, tenant: str) -> AcceptedInput:
        value, accepts, path = given.value, given.source.accepts, given.path
        if value.startswith(STAGING_SCHEME) and Form.DATA in accepts:
            staged, content_type, extension = await self._accept_staged(value, tenant, path)
            return AcceptedInput(given.input, f"{given.stem}.{extension}", staged=staged, content_type=content_type)
        if _is_url(value) and Form.URL in accepts:
            self.check_address(value, path)
            return AcceptedInput(given.input, value)
        if Form.PATH in accepts and (stored := await self._stored(value, tenant, path)) is not None:
            return AcceptedInput(given.input, stored)
        if Form.DATA not in accepts:
            raise invalid(path, _no_object(value), "unknown_object")
        data = await _decode(value, path)
        info = await self._checks.check(tenant, data, path=path)
        return AcceptedInput(
            given.input, f"{given.stem}.{info.format.lower()}", data=data, content_type=info.content_type
        )

    async def _accept_staged(self, value: str, tenant: str, path: str) -> tuple[str, str, str]:
        staged = at(path, lambda: normalise_path(value.removeprefix(STAGING_SCHEME)))
        upload = await self._objects.stat(tenant, staged) if is_staged(staged) else None
        if upload is None:
            raise invalid(path, "The upload does not exist any more", "unknown_upload")
        most = self._checks.limits.max_bytes
        if upload.size > most:
            raise too_large(f"{path} has {upload.size} bytes, at most {most} are allowed")
        # Loaded when its turn has come, and to disk: photos are large.
        load = partial(open_copy, self._objects, tenant, staged, most)
        info = await self._checks.check(tenant, load, path=path)
        return staged, info.content_type, info.format.lower()

    async def _stored(self, value: str, tenant: str, path: str) -> str | None:
        """Return the path in storage that a text names, or None where it looks like base64."""
        looks_like_path = ".." in value or "\\" in value or "." in value.rpartition("/")[2]
        if value[:5].lower() == "data:" or len(value) > 1024:
            return None
        if looks_like_path:
            return await self.check_reference(value, tenant, path)
        try:
            normal = normalise_path(value)
        except MeshError:
            return None
        return normal if await self._objects.stat(tenant, normal) is not None else None


@dataclass(frozen=True, slots=True)
class _Given:
    """An image as a caller gives it.

    Attributes:
        input: The input that it is, or is an item of.
        source: Field of the Create message that carries it.
        value: Data, upload, address or path.
        path: Path of the member in the request.
        stem: Path of the object that data becomes, without an extension.
    """

    input: InputSpec
    source: SourceSpec
    value: str
    path: str
    stem: str


def given_sources(image: InputSpec, detail: Any) -> list[SourceSpec]:
    """Return the sources of an input that a Create message sets, in their order of precedence."""
    return [
        source
        for source in image.sources
        if (len(getattr(detail, source.field)) if source.many else detail.HasField(source.field))
    ]


def _given(task_type: TaskTypeSpec, image: InputSpec, detail: Any, folder: str) -> Iterator[_Given]:
    where = f"task.{task_type.detail}"
    named = given_sources(image, detail)
    if len(named) > 1 and image.exclusive:
        raise invalid(f"{where}.{named[1].field}", f"excludes {named[0].field}", "one_source")
    for source in named[:1]:
        value = getattr(detail, source.field)
        values: Iterable[str] = value if source.many else [value]
        for index, one in enumerate(values):
            path = f"{where}.{source.field}[{index}]" if source.many else f"{where}.{source.field}"
            stem = f"{folder}{image.name}-{index}" if image.many else f"{folder}{image.name}"
            yield _Given(image, source, one, path, stem)


def at(path: str, work: Callable[[], _T]) -> _T:
    """Run a check, and name the request's member in what it raises, where the check could not know it.

    Args:
        path: Path of the member.
        work: The check.
    """
    try:
        return work()
    except MeshError as error:
        if error.kind is ErrorKind.INVALID and error.violations:
            raise invalid(path, error.violations[0].message, error.violations[0].type) from None
        raise


async def _decode(value: str, path: str) -> bytes:
    if len(value) < _INLINE_BYTES:
        return decode_data(value, path=path)
    return await asyncio.to_thread(decode_data, value, path=path)


def _no_object(value: str) -> str:
    """Say what is wrong with a text that names no object, without repeating an image."""
    if value[:5].lower() == "data:" or (len(value) > _LONGEST_NAME and "." not in value):
        return "takes a path in storage or an http(s) address, not an image's data"
    return f"There is no object {value!r} in storage"


def _is_url(value: str) -> bool:
    return value[:8].lower().startswith(("http://", "https://"))
