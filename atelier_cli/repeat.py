"""The request that an earlier task began with, as far as the task shows it."""

from collections.abc import Mapping
from typing import Any, Final

from atelier.tasks.v1 import task_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from atelier_cli.errors import CliError
from meshkit.catalog import TASK_TYPES

# A new task of the same tenant; the rest of these is drawn or chosen again.
_CHOSEN_AGAIN: Final = frozenset({"detail", "origin_instance", "origin_tenant_id", "workflow_id"})


def request_of(task: Mapping[str, Any], *, same_seed: bool = True) -> dict[str, Any]:
    """Return the request for a new task like an earlier one.

    The task shows all members of its request but `queue_name` and `webhook_url`; files that came as data are named by
    their paths in storage.

    Args:
        task: As the API gives it.
        same_seed: Whether seeds are kept; new ones are drawn otherwise.

    Raises:
        CliError: Its type is not known here.
    """
    known = TASK_TYPES.get(task["task_type"])
    if known is None:
        raise CliError(f"Tasks of type {task['task_type']} are not known here.")
    create = task_pb2.CreateTask.DESCRIPTOR
    detail: Descriptor = getattr(task_pb2.CreateTask(), known.detail).DESCRIPTOR
    sources = {source.field for each in known.inputs for source in each.sources}
    names = [field.name for field in (*create.fields, *detail.fields) if _stands_alone(field)]
    request = {
        name: task[name]
        for name in names
        if name not in sources
        and name not in _CHOSEN_AGAIN
        and (same_seed or name not in known.seeds)
        and task.get(name) not in (None, [])
    }
    for each in known.inputs:
        if given := task.get(each.public):
            request[each.kept.field] = given
    return {"task_type": task["task_type"], **request}


def _stands_alone(field: FieldDescriptor) -> bool:
    """Whether a field excludes no other one; the oneof of an `optional` field has no other."""
    return field.containing_oneof is None or len(field.containing_oneof.fields) == 1
