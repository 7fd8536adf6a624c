"""What a worker may say of a result: only objects of its own attempt are part of it."""

from __future__ import annotations

from atelier.tasks.v1 import worker_service_pb2

from meshkit.catalog import TASK_TYPES, type_of_detail
from meshkit.errors import MeshError, invalid
from meshkit.paths import normalise_path
from services.tasks.catalog import prefix_of
from services.tasks.domain import AttemptRef


def misplaced(ref: AttemptRef, completion: worker_service_pb2.Completion) -> MeshError | None:
    """Return an error where an object, or a path in the result, lies outside of the attempt's folder.

    What is named here is served to the task's callers and deleted with the task, so that a foreign path would give
    away, or destroy, what is another task's.
    """
    spec = type_of_detail(completion.result.WhichOneof("detail"))
    types = TASK_TYPES if spec is None else (spec.name,)
    folders = tuple(f"{prefix_of(name, ref.job_id)}{ref.attempt}/" for name in types)
    for index, item in enumerate(completion.objects):
        if not _inside(item.path, folders):
            return invalid(f"objects[{index}].path", "lies outside of the attempt's prefix", "foreign_object")
    if spec is None:
        return None
    for output in spec.outputs:
        value = getattr(getattr(completion.result, spec.detail), output.field)
        for index, path in enumerate(value if output.many else (value,)):
            # An item of a list that failed has an empty path in its place.
            if path and not _inside(path, folders):
                place = f"[{index}]" if output.many else ""
                where = f"result.{spec.detail}.{output.field}{place}"
                return invalid(where, "lies outside of the attempt's prefix", "foreign_object")
    return None


def _inside(path: str, folders: tuple[str, ...]) -> bool:
    if not path.startswith(folders):
        return False
    try:
        return normalise_path(path) == path
    except MeshError:
        return False
