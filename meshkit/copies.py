"""Objects of the store as temporary files, for what is too large to be in memory."""

from __future__ import annotations

from tempfile import TemporaryFile
from typing import BinaryIO, Protocol, cast


class CopiedObjects(Protocol):
    """What is asked of the object store."""

    async def copy_into(self, tenant: str, path: str, file: BinaryIO, max_bytes: int | None = ...) -> None:
        """Read an object into an open file."""
        ...


async def open_copy(objects: CopiedObjects, tenant: str, path: str, max_bytes: int) -> BinaryIO:
    """Return an object as an open file without a name, which the caller closes.

    Args:
        objects: The object store.
        tenant: Tenant it belongs to.
        path: Its path.
        max_bytes: What is larger is not read.

    Raises:
        MeshError: `NOT_FOUND` where there is none, `TOO_LARGE` for one that is larger.
    """
    file = cast("BinaryIO", TemporaryFile())  # noqa: SIM115 -- the caller closes it
    try:
        await objects.copy_into(tenant, path, file, max_bytes)
    except BaseException:
        file.close()
        raise
    return file
