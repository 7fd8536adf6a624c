"""Stores the files of an attempt, and deletes them again where its result is not taken."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from atelier.inference.v1.child_pb2 import ChildFile, ChildOutput
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_INTERNAL, ERROR_CATEGORY_RESOURCE
from atelier.tasks.v1.task_pb2 import TaskResult
from atelier.tasks.v1.worker_service_pb2 import Lease, ResultObject

from meshkit.errors import TRANSIENT, MeshError
from meshkit.logging import get_logger
from meshkit.objects import ObjectInfo, ObjectStore
from meshkit.worker.handlers import TaskFailed
from meshkit.worker.pacing import Backoff

_log = get_logger(__name__)

_TRIES = 4
_SETTLE_SECONDS = 60.0


class Uploads:
    """The objects of one attempt.

    A write that has begun cannot be stopped. Where its caller is cancelled it goes on, and `discard` waits for it.

    Args:
        objects: The store.
        lease: The attempt.
    """

    def __init__(self, objects: ObjectStore, lease: Lease) -> None:
        self._objects = objects
        self._tenant = lease.tenant
        self._prefix = lease.result_prefix
        self._puts: list[tuple[str, asyncio.Future[ObjectInfo]]] = []

    async def put(self, folder: str, file: ChildFile) -> ResultObject:
        """Store a file of the attempt's folder.

        Raises:
            TaskFailed: it is not there, or the store does not take it.
        """
        local, path, backoff = result_file(folder, file), self._prefix + file.name, Backoff(0.2, 3.0)
        for tried in range(1, _TRIES + 1):
            put = asyncio.ensure_future(self._objects.put(self._tenant, path, local, file.content_type))
            self._puts.append((path, put))
            try:
                info = await asyncio.shield(put)
                return ResultObject(path=info.path, size=info.size, content_type=file.content_type)
            except MeshError as error:
                if error.kind not in TRANSIENT or tried == _TRIES:
                    _log.warning("upload_failed", path=path, kind=error.kind.value, tried=tried)
                    break
            await asyncio.sleep(backoff.pause(tried))
        raise TaskFailed("The result could not be stored.", ERROR_CATEGORY_RESOURCE, retryable=True)

    def keep(self) -> None:
        """Leave the objects where they are: they are the task's, or may be."""
        self._puts.clear()

    async def discard(self) -> None:
        """Delete what was stored, or may have been; without effect after `keep`.

        What cannot be deleted now is left to the sweeper of the tasks service.
        """
        puts, self._puts = self._puts, []
        if not puts:
            return
        await asyncio.wait([put for _, put in puts], timeout=_SETTLE_SECONDS)
        for path in dict.fromkeys(path for path, _ in puts):
            with contextlib.suppress(MeshError):
                await self._objects.delete(self._tenant, path)
        _log.info("result_discarded", prefix=self._prefix)


def result_file(folder: str, file: ChildFile) -> Path:
    """Return the local path of a file that a child names.

    Raises:
        TaskFailed: it is not a plain file of that folder.
    """
    path = Path(folder) / file.name
    if Path(file.name).name != file.name or path.is_symlink() or not path.is_file():
        raise TaskFailed("The worker lost a file of the result.", ERROR_CATEGORY_INTERNAL, retryable=True)
    return path


def name_files(output: ChildOutput, prefix: str) -> TaskResult:
    """Return the result with the paths of its files set, those of a list in the places that their files name."""
    result = output.result
    detail = result.WhichOneof("detail")
    if detail is None:
        return result
    fields = getattr(result, detail)
    for file in output.files:
        if not file.field:
            continue
        if file.HasField("index"):
            paths = getattr(fields, file.field)
            paths.extend([""] * (file.index + 1 - len(paths)))
            paths[file.index] = prefix + file.name
        else:
            setattr(fields, file.field, prefix + file.name)
    return result
