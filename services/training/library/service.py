"""What callers do with the library."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from uuid import UUID, uuid4

from meshkit.access import Caller
from meshkit.errors import MeshError, invalid, too_large, unavailable
from meshkit.logging import get_logger
from meshkit.loras import LORA_FOLDER, PRINTED_ROOT
from meshkit.objects import ObjectStore
from meshkit.paths import normalise_path
from meshkit.staging import is_staged
from meshkit.stored_bytes import StoredBytes
from modelkit.errors import ModelError
from services.training.library import names
from services.training.library.bases import BaseModel
from services.training.library.conversion.converter import PickleConverter
from services.training.library.domain import BIN_FOLDER, PRINTED_BIN, LoraRecord, LoraState
from services.training.library.errors import lora_not_found, name_is_taken, too_many_versions
from services.training.library.files import LoraFiles
from services.training.library.judging import LoraFacts, judge, judge_trained
from services.training.library.store import LoraStore

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OfferedLora:
    """A file that waits in the store.

    Attributes:
        staged_path: Where, among the caller's objects.
        filename: Name that its caller gave it.
        entity_type: What it shows, as its caller said.
        sha256: Hash of the file as it was sent, in hex.
        safe_name: Whether the library may choose another name.
        shared: Whether it is for all tenants.
    """

    staged_path: str
    filename: str
    entity_type: str | None
    sha256: str
    safe_name: bool
    shared: bool


@dataclass(frozen=True, slots=True)
class TrainedLora:
    """What a training ended with.

    Attributes:
        tenant: Its tenant.
        source: The file among the tenant's objects.
        path: Folder and name that it should have.
        training_id: The training.
        base_model: Model that was trained on.
        trigger_word: Word that calls what it has learned.
        thumbnail: Picture of it among the tenant's objects.
    """

    tenant: str
    source: str
    path: str
    training_id: UUID
    base_model: str
    trigger_word: str
    thumbnail: str | None


@dataclass(frozen=True, slots=True)
class LibraryLimits:
    """What the library takes.

    Attributes:
        max_bytes: Largest file.
        files_at_once: Files that are judged at once, each of which lies on the local disk meanwhile.
        shared_tenant: Tenant that owns what all may use.
    """

    max_bytes: int
    files_at_once: int
    shared_tenant: str


class LoraLibrary:
    """The use cases.

    Args:
        store: The database.
        objects: The object store.
        files: Moves objects.
        converter: Makes files of torch safetensors.
        bases: Models that a LoRA may be for.
        stored: Knows how much tenants store.
        limits: What is taken.
        clock: Now, in UTC.
    """

    def __init__(
        self,
        store: LoraStore,
        *,
        objects: ObjectStore,
        files: LoraFiles,
        converter: PickleConverter,
        bases: Sequence[BaseModel],
        stored: StoredBytes,
        limits: LibraryLimits,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._objects = objects
        self._files = files
        self._converter = converter
        self._bases = bases
        self._stored = stored
        self._limits = limits
        self._clock = clock
        self._places = asyncio.Semaphore(limits.files_at_once)

    # -- into the library ------------------------------------------------------------------------------------------

    async def upload(self, offered: OfferedLora, caller: Caller) -> LoraRecord:
        """Take a file that a caller has sent.

        Raises:
            MeshError: `INVALID` with what is wrong with it, `TOO_LARGE`, `CONFLICT` for a name that is taken.
        """
        tenant = caller.require_tenant()
        owner = self._limits.shared_tenant if offered.shared else tenant
        folder = names.folder_of(offered.entity_type, shared=offered.shared)
        extension = names.extension_of(offered.filename)
        name = names.safe_name(offered.filename) if offered.safe_name else names.exact_name(offered.filename)
        size = await self._offered_size(tenant, offered.staged_path)
        self._stored.check(owner, size)
        async with self._fetched(tenant, offered.staged_path) as fetched:
            local = await self._as_safetensors(fetched, extension)
            facts = await self._checked(judge, local, self._bases)
            if local == fetched and facts.sha256 != offered.sha256:
                raise unavailable("The file has changed on its way; send it again", reason="UPLOAD_CHANGED")
            new = self._record(owner, folder, offered.filename, facts)
            record = await self._named(new, name, versioned=offered.safe_name)
            await self._put(record, local, facts)
        await self._objects.delete(tenant, offered.staged_path)
        _log.info("lora_uploaded", tenant=owner, path=record.path, layout=record.layout, base_model=record.base_model)
        return record

    async def register(self, trained: TrainedLora) -> LoraRecord:
        """Take what a training ended with, once however often it is asked for.

        Raises:
            MeshError: `INVALID` where the training made no LoRA.
        """
        tenant = trained.tenant
        found = await self._store.find_trained(trained.training_id)
        if found is not None and found.settled:
            return found
        folder, _, name = trained.path.partition("/")
        async with self._fetched(tenant, trained.source) as fetched:
            facts = await self._checked(judge_trained, fetched, self._bases, trained.base_model)
            if found is None:
                new = self._record(tenant, folder, name, facts)
                new = replace(new, training_id=trained.training_id, trigger_word=trained.trigger_word)
                found = await self._named(new, name, versioned=True)
            await self._files.put(found, fetched)
        if trained.thumbnail is not None:
            copied = await self._files.copy_thumbnail(found, trained.thumbnail)
            await self._store.set_thumbnail(found, copied)
        _log.info("lora_registered", tenant=tenant, path=found.path, training_id=str(trained.training_id))
        return found

    async def _put(self, record: LoraRecord, local: Path, facts: LoraFacts) -> None:
        try:
            await self._files.put(record, local)
        except BaseException:
            await asyncio.shield(self._store.remove(record))
            raise
        if facts.thumbnail:
            path = await self._files.put_thumbnail(record, facts.thumbnail)
            if path is not None:
                await self._store.set_thumbnail(record, path)

    async def _offered_size(self, tenant: str, staged_path: str) -> int:
        path = normalise_path(staged_path)
        info = await self._objects.stat(tenant, path) if is_staged(path) else None
        if info is None:
            raise invalid("file", "The upload does not exist any more", "unknown_upload")
        if info.size > self._limits.max_bytes:
            raise too_large(f"The file has {info.size} bytes; at most {self._limits.max_bytes} are taken")
        return info.size

    @asynccontextmanager
    async def _fetched(self, tenant: str, path: str) -> AsyncIterator[Path]:
        async with self._places:
            folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="atelier-lora-"))
            try:
                local = folder / "file"
                await self._objects.download(tenant, path, local)
                yield local
            finally:
                await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))

    async def _as_safetensors(self, local: Path, extension: str) -> Path:
        """Convert a file of torch; its content decides, and safetensors under another name is taken as it is."""
        if extension == names.SAFETENSORS or await asyncio.to_thread(_looks_like_safetensors, local):
            return local
        converted = local.with_name("converted")
        await self._converter.convert(local, converted)
        return converted

    @staticmethod
    async def _checked(check: Callable[..., LoraFacts], *arguments: object) -> LoraFacts:
        try:
            return await asyncio.to_thread(check, *arguments)
        except ModelError as refusal:
            raise invalid("file", refusal.message, "lora") from None

    def _record(self, owner: str, folder: str, filename: str, facts: LoraFacts) -> LoraRecord:
        return LoraRecord(
            id=uuid4(),
            tenant=owner,
            folder=folder,
            name="",
            bin_name=None,
            filename=filename,
            bytes=facts.bytes,
            sha256=facts.sha256,
            layout=facts.layout,
            base_model=facts.base_model,
            rank=facts.rank,
            unmatched=list(facts.unmatched),
            trigger_word=facts.trigger_word,
            notes=facts.notes,
            thumbnail=None,
            training_id=None,
            state=LoraState.STORED,
            settled=False,
            created_at=self._clock(),
            deleted_at=None,
        )

    async def _named(self, record: LoraRecord, name: str, *, versioned: bool) -> LoraRecord:
        """Write a record under its name or the first version of it that is free."""
        candidates: Iterator[str] = names.versions(name) if versioned else iter((name,))
        for candidate in candidates:
            named = replace(record, name=candidate)
            # An object may lie there without a row: on its way into the bin, or put there by hand.
            if not await self._files.exists(record.tenant, named.object_path) and await self._store.add(named):
                return named
            if record.training_id is not None:
                # Another call of the same training may have come between.
                before = await self._store.find_trained(record.training_id)
                if before is not None:
                    return before
        if versioned:
            raise too_many_versions(f"{record.folder}/{name}")
        raise name_is_taken(f"{record.folder}/{name}")

    # -- what is there ---------------------------------------------------------------------------------------------

    async def list_loras(
        self, caller: Caller, folder: str | None, *, deleted: bool, skip: int, limit: int
    ) -> list[LoraRecord]:
        """Return the LoRAs that a caller's tenant may use, newest first."""
        if folder is not None and folder not in names.FOLDERS:
            raise invalid("entity_type", f"must be one of {', '.join(names.FOLDERS)}", "enum")
        return await self._store.list_loras(self._usable(caller), folder, deleted=deleted, skip=skip, limit=limit)

    async def get(self, path: str, caller: Caller) -> LoraRecord:
        """Return the LoRA that a task of the caller would use by this path.

        Raises:
            MeshError: `NOT_FOUND`.
        """
        folder, name = _parted(path)
        for tenant in self._usable(caller):
            found = await self._store.find(tenant, folder, name)
            if found is not None:
                return found
        raise lora_not_found(path)

    async def thumbnail(self, path: str, caller: Caller) -> tuple[bytes, str]:
        """Return a LoRA's picture and its media type.

        Raises:
            MeshError: `NOT_FOUND` for no such LoRA, or one without a picture.
        """
        found = await self._files.thumbnail(await self.get(path, caller))
        if found is None:
            raise lora_not_found(f"{path}/thumbnail")
        return found

    async def owner(self, tenant: str, path: str) -> str | None:
        """Return the tenant that a LoRA belongs to, which a tenant may use; None where there is none."""
        for one in (tenant, self._limits.shared_tenant):
            if await self._files.exists(one, f"{LORA_FOLDER}/{path}"):
                return one
        return None

    def is_shared(self, record: LoraRecord) -> bool:
        """Tell whether all tenants may use a LoRA."""
        return record.tenant == self._limits.shared_tenant

    def _usable(self, caller: Caller) -> list[str]:
        return list(dict.fromkeys((caller.require_tenant(), self._limits.shared_tenant)))

    # -- the bin ---------------------------------------------------------------------------------------------------

    async def delete(self, partial_path: str, caller: Caller) -> LoraRecord:
        """Move a LoRA to the bin: the tenant's own of this path, else the shared one.

        Raises:
            MeshError: `NOT_FOUND`, `INVALID` for a path that leads elsewhere.
        """
        path = _checked(partial_path.removeprefix(PRINTED_ROOT), "lora.partial_path")
        found = await self.get(path, caller)
        for bin_name in names.versions(found.name):
            moved = await self._store.move_to_bin(found, bin_name)
            if moved is not None:
                await self._files.settle(moved)
                _log.info("lora_deleted", tenant=moved.tenant, path=moved.path, subject=caller.subject)
                return moved
            if await self._store.find(found.tenant, found.folder, found.name) is None:
                break
        raise lora_not_found(path)

    async def restore(self, bin_path: str, caller: Caller) -> LoraRecord:
        """Bring a LoRA back from the bin.

        Raises:
            MeshError: `NOT_FOUND`, `CONFLICT` where another one has its name by now.
        """
        shown = bin_path.removeprefix(PRINTED_BIN).removeprefix(f"{BIN_FOLDER}/")
        folder, name = _parted(_checked(shown, "lora.bin_path"))
        for tenant in self._usable(caller):
            found = await self._store.find_in_bin(tenant, folder, name)
            if found is None:
                continue
            moved = await self._store.move_back(found)
            if moved is None:
                raise name_is_taken(found.path)
            await self._files.settle(moved)
            _log.info("lora_restored", tenant=moved.tenant, path=moved.path, subject=caller.subject)
            return replace(moved, bin_name=None)
        raise lora_not_found(bin_path)


def _looks_like_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _parted(path: str) -> tuple[str, str]:
    folder, _, name = path.partition("/")
    if not name or "/" in name:
        raise lora_not_found(path)
    return folder, name


def _checked(path: str, member: str) -> str:
    """Return a path in its one form; percent signs are no way round the rules, for no name in the library has them."""
    try:
        normal = normalise_path(path)
    except MeshError as error:
        raise invalid(member, error.violations[0].message, error.violations[0].type) from None
    if "%" in normal:
        raise invalid(member, "must not be percent-encoded", "path_encoded")
    return normal
