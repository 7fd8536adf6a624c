"""Results as addresses that work without a token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import orjson
from atelier.tasks.v1 import task_pb2

from meshkit.catalog import type_of_detail
from meshkit.media_urls import MediaLinks
from services.tasks.convert import to_task
from services.tasks.domain import TaskRecord
from services.tasks.webhooks.domain import MediaMembers

# Members of a task, and of its event, that address its result: the one file, or each of several.
ONE = "media_url"
SEVERAL = "media_urls"

ShowTask = Callable[[TaskRecord], task_pb2.Task]


def media_of(record: TaskRecord) -> MediaMembers:
    """Return the paths of a task's result files by the member that addresses them; empty where it has none."""
    return {} if record.result is None or record.is_deleted else _media(to_task(record))


def shower(links: MediaLinks | None) -> ShowTask:
    """Return what makes of a row the task that callers see, with addresses of its result that are signed now.

    Args:
        links: Makes addresses; None where the mesh is not told its own.
    """
    if links is None:
        return to_task

    def show(record: TaskRecord) -> task_pb2.Task:
        task = to_task(record)
        # Files of a task that was cleaned up are gone.
        for paths in () if record.result is None or record.is_deleted else _media(task).values():
            if isinstance(paths, str):
                task.media_url = links.url(record.tenant, paths)
            else:
                task.media_urls.extend(links.urls(record.tenant, paths))
        return task

    return show


def with_media(body: bytes, tenant: str, media: MediaMembers | None, links: MediaLinks | None) -> bytes:
    """Return an event with addresses of its media that are signed now.

    Args:
        body: The event as JSON.
        tenant: Tenant of the objects.
        media: Members to be set, with the paths of objects.
        links: Makes addresses; None where the mesh is not told its own.
    """
    if not media or links is None:
        return body
    signed = {
        name: links.url(tenant, paths) if isinstance(paths, str) else links.urls(tenant, paths)
        for name, paths in media.items()
    }
    return orjson.dumps(orjson.loads(body) | signed)


def _media(task: task_pb2.Task) -> MediaMembers:
    spec = type_of_detail(task.WhichOneof("detail"))
    found: dict[str, str | Sequence[str]] = {}
    if spec is None:
        return found
    detail = getattr(task, spec.detail)
    for output in spec.outputs:
        value = getattr(detail, output.field)
        if output.many and any(value):
            found.setdefault(SEVERAL, list(value))
        elif value and not output.many:
            found.setdefault(ONE, value)
    return found
