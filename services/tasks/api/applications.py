"""The application that a task is to call, and the calls that it has made.

A caller names the application on the task, in the provider's settings, or in both alike; from then on both have it. The
calls are the mesh's own: see `meshkit.provider_settings`.
"""

from __future__ import annotations

from typing import Any

from atelier.tasks.v1 import providers_pb2, task_pb2

from meshkit.catalog import ProviderSpec, TaskTypeSpec
from meshkit.errors import invalid
from meshkit.provider_settings import NAMED_REQUEST, named_request

APPLICATION = "fal_app_id"


def refuse_calls(config: providers_pb2.ProviderConfig, path: str) -> None:
    """Refuse settings that name a call at the provider.

    Args:
        config: Settings as the caller gave them.
        path: Path of the settings in the request, for the error.

    Raises:
        MeshError: `INVALID`.
    """
    if (name := named_request(config)) is not None:
        raise invalid(f"{path}.{name}", NAMED_REQUEST, "read_only")


def fold_application(
    spec: task_pb2.CreateTask, task_type: TaskTypeSpec, provider: ProviderSpec, fallback: ProviderSpec | None
) -> None:
    """Give the application that a task names to the settings of its provider, and the other way round.

    Where the provider calls no application, the one that the task names is its fallback's.

    Args:
        spec: The task; it is changed.
        task_type: Its type.
        provider: Its provider.
        fallback: The provider that follows.

    Raises:
        MeshError: `INVALID` where both name one and they differ, where neither does and the provider needs one, or
            where no provider of the task calls an application.
    """
    detail: Any = getattr(spec, task_type.detail)
    named = APPLICATION in detail.DESCRIPTOR.fields_by_name and detail.HasField(APPLICATION)
    wanted = detail.fal_app_id if named else None
    taken = False
    whole: Any = spec  # its members are named by the texts below
    for one, field in ((provider, "provider_config"), (fallback, "fallback_provider_config")):
        if one is None or not _calls(one):
            continue
        settings = getattr(getattr(whole, field), one.config) if whole.HasField(field) else None
        own = settings.fal_app_id if settings is not None and settings.HasField(APPLICATION) else None
        if own is None and (wanted is None or taken):
            raise invalid(f"task.{field}.{one.config}.{APPLICATION}", "Field required", "missing")
        if own is not None and wanted is not None and own != wanted and not taken:
            raise invalid(
                f"task.{task_type.detail}.{APPLICATION}",
                f"differs from the one in {field}; name one application, or the same twice",
                "application_differs",
            )
        if own is None:
            getattr(getattr(whole, field), one.config).fal_app_id = wanted
        elif one is provider and not named and APPLICATION in detail.DESCRIPTOR.fields_by_name:
            detail.fal_app_id = own
        taken = True
    if named and not taken:
        raise invalid(
            f"task.{task_type.detail}.{APPLICATION}",
            f"is for tasks whose provider calls an application, and the provider is {provider.name}",
            "application_unused",
        )


def follow_application(spec: task_pb2.CreateTask, body: task_pb2.Task, application: str) -> None:
    """Give an application that was changed to the settings that name one.

    Args:
        spec: The task as accepted; it is changed.
        body: The task as it stands; it is changed.
        application: The application.
    """
    for message in (spec, body):
        config = message.provider_config if message.HasField("provider_config") else None
        chosen = None if config is None else config.WhichOneof("config")
        if chosen is not None and APPLICATION in getattr(config, chosen).DESCRIPTOR.fields_by_name:
            getattr(config, chosen).fal_app_id = application


def _calls(provider: ProviderSpec) -> bool:
    field = providers_pb2.ProviderConfig.DESCRIPTOR.fields_by_name[provider.config]
    assert field.message_type is not None  # settings are messages
    return APPLICATION in field.message_type.fields_by_name
