"""What a worker may say of a result: only objects of its own attempt are part of it."""

from __future__ import annotations

import functools

from atelier.tasks.v1 import worker_service_pb2
from google.protobuf.descriptor import Descriptor

from meshkit.errors import MeshError, invalid
from meshkit.paths import normalise_path
from services.tasks.catalog import FIELDS, TYPES, prefix_of
from services.tasks.domain import AttemptRef


def misplaced(ref: AttemptRef, completion: worker_service_pb2.Completion) -> MeshError | None:
    """Return an error where an object, or a path in the result, lies outside of the attempt's folder.

    What is named here is served to the task's callers and deleted with the task, so that a foreign path would give
    away, or destroy, what is another task's.
    """
    detail = completion.result.WhichOneof("detail")
    types = TYPES if detail is None else (FIELDS[detail].name,)
    folders = tuple(f"{prefix_of(name, ref.job_id)}{ref.attempt}/" for name in types)
    for index, item in enumerate(completion.objects):
        if not _inside(item.path, folders):
            return invalid(f"objects[{index}].path", "lies outside of the attempt's prefix", "foreign_object")
    if detail is not None:
        fields = getattr(completion.result, detail)
        for name, repeated in _path_fields(fields.DESCRIPTOR):
            value = getattr(fields, name)
            for path in value if repeated else (value,):
                if path and not _inside(path, folders):
                    return invalid(f"result.{detail}.{name}", "lies outside of the attempt's prefix", "foreign_object")
    return None


def _inside(path: str, folders: tuple[str, ...]) -> bool:
    if not path.startswith(folders):
        return False
    try:
        return normalise_path(path) == path
    except MeshError:
        return False


@functools.cache
def _path_fields(message: Descriptor) -> tuple[tuple[str, bool], ...]:
    """Fields of a type's result that name objects which the attempt wrote, and whether each names several."""
    return tuple(
        (field.name, field.is_repeated)
        for field in message.fields
        if field.name.startswith("result") and field.name.endswith(("_path", "_paths"))
    )
