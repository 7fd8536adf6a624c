"""What this installation serves of the task types and providers that the contract declares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from atelier.tasks.v1 import providers_pb2, task_pb2
from google.protobuf.struct_pb2 import Struct

from meshkit import cutouts
from meshkit.catalog import (
    OWN_PROVIDERS,
    PROVIDERS,
    TASK_TYPES,
    MediaKind,
    ProviderSpec,
    TaskTypeSpec,
    provider_numbered,
    type_of_detail,
)
from meshkit.errors import invalid
from meshkit.likeness import NETWORKS as CONSISTENCY_NETWORKS
from meshkit.provider_settings import STEERING
from meshkit.steering import steering
from services.tasks.domain import JobKind, lane_of

TASK_TYPES_WITH_HANDLERS = (
    "GENERATION",
    "EDITING",
    "REFINE",
    "VIDEO_GENERATION",
    "LLM_INTERACTION",
    "BACKGROUND_REMOVE",
    "DETAIL_ENHANCER",
    "BACKGROUND_FIX",
    "IMAGE_ADJUSTER",
    "FACE_ENHANCER",
    "PHOTO_DETECTION",
)
LOCAL = PROVIDERS["LOCAL"].name
PROVIDERS_WITH_HANDLERS = OWN_PROVIDERS
# Jobs of other services are of no task type; each kind has a queue of its own.
JOB_QUEUES: Mapping[JobKind, str] = MappingProxyType({JobKind.TRAINING: "training"})
QUEUES = frozenset(spec.queue for spec in PROVIDERS.values()) | frozenset(JOB_QUEUES.values())
# Device seconds that a job is taken for where more than its lane is not known.
_JOB_SECONDS = 600.0


class Catalog:
    """What is served.

    Args:
        task_types: Spellings of the task types that are on.
        providers: Spellings of the providers that are on.
        cutout_models: Networks that remove backgrounds, beside those that ship.
        consistency_networks: Networks that the workers compare pictures by (`lpips`, `dists`).
        enable_noop: Whether NOOP tasks are taken too.
    """

    def __init__(
        self,
        *,
        task_types: Iterable[str] = TASK_TYPES_WITH_HANDLERS,
        providers: Iterable[str] = PROVIDERS_WITH_HANDLERS,
        cutout_models: Iterable[str] = (),
        consistency_networks: Iterable[str] = (),
        enable_noop: bool = False,
    ) -> None:
        self._networks = cutouts.served(cutout_models)
        self._compared_by = frozenset(consistency_networks)
        chosen, called = frozenset(task_types), frozenset(providers)
        self.served_types = tuple(
            name for name, spec in TASK_TYPES.items() if name in chosen or (enable_noop and spec.internal)
        )
        self.served_providers = tuple(name for name in PROVIDERS if name in called)
        self.costs = {
            f"{task_type}/{provider.name}": TASK_TYPES[task_type].expected_seconds
            for provider in PROVIDERS.values()
            for task_type in provider.tasks
        } | {lane_of("", LOCAL, kind): _JOB_SECONDS for kind in JOB_QUEUES}
        self._capabilities = {name: PROVIDERS[name].capabilities(self.served_types) for name in self.served_providers}

    def type_of(self, task: task_pb2.CreateTask) -> TaskTypeSpec:
        """Return the type of a task that a caller asks for.

        Raises:
            MeshError: `INVALID` where this installation does not serve it.
        """
        spec = type_of_detail(task.WhichOneof("detail"))
        if spec is None:
            raise invalid("task.task_type", f"Field required; one of {', '.join(self.public_types)}", "missing")
        if spec.name not in self.served_types:
            raise invalid(
                "task.task_type",
                f"Tasks of type {spec.name} are not served; this installation serves {', '.join(self.public_types)}",
                "task_type_not_served",
            )
        return spec

    @property
    def public_types(self) -> list[str]:
        """The served types that are listed to callers, in the contract's order."""
        return [name for name in self.served_types if not TASK_TYPES[name].internal]

    def provider_of(self, number: int, task_type: TaskTypeSpec, path: str) -> ProviderSpec:
        """Return the provider of a task.

        Args:
            number: Number of the ProviderType; 0 means the type's default.
            task_type: Type of the task.
            path: Path of the field, for the error.

        Raises:
            MeshError: `INVALID` where this installation does not call it, or it does not execute the type.
        """
        spec = provider_numbered(number) if number else PROVIDERS[task_type.default_provider]
        if spec.name not in self.served_providers:
            raise invalid(
                path,
                f"Provider {spec.name} is not served; "
                f"this installation serves {', '.join(sorted(self.served_providers))}",
                "provider_type_not_served",
            )
        if task_type.name not in spec.tasks:
            able = [name for name in self.served_providers if task_type.name in PROVIDERS[name].tasks]
            raise invalid(
                path,
                f"Provider {spec.name} does not execute {task_type.name} tasks; "
                + (f"one of {', '.join(able)} does" if able else "no provider that is served does"),
                "provider_type_unfit",
            )
        return spec

    def queue_of(self, name: str | None, provider: ProviderSpec) -> str:
        """Return the queue of a task.

        Args:
            name: What the caller named, if anything.
            provider: The provider.

        Raises:
            MeshError: `INVALID` where no such queue is registered.
        """
        queue = name or provider.queue
        if queue not in QUEUES:
            raise invalid(
                "task.queue_name", f"Unknown queue {queue!r}; one of {', '.join(sorted(QUEUES))}", "unknown_queue"
            )
        return queue

    def capabilities(self, provider: str) -> frozenset[str]:
        """Return what a served provider can do for the served types."""
        return self._capabilities[provider]

    def check_network(self, config: providers_pb2.ProviderConfig, path: str) -> None:
        """Refuse a network for cut-outs, or a check by a network, that this installation does not have.

        Args:
            config: Settings of a provider.
            path: Path of the settings, for the error.

        Raises:
            MeshError: `INVALID` naming those that it has.
        """
        name = config.local.rembg_model
        if name and name not in self._networks:
            raise invalid(
                f"{path}.local.rembg_model",
                f"The network {name} is not here; this installation has {', '.join(self._networks)}",
                "rembg_model_not_served",
            )
        if chosen := config.WhichOneof("config"):
            self._check_thresholds(getattr(config, chosen), f"{path}.{chosen}")

    def check_config(
        self, config: Struct, task_type: TaskTypeSpec, provider: ProviderSpec, path: str, detail: Any = None
    ) -> None:
        """Refuse members of a task's `config` that steer a local worker, or models of the provider, and do not hold.

        Args:
            config: The task's `config`.
            task_type: Type of the task.
            provider: Who executes it.
            path: Path of `config`, for the error.
            detail: The task's Create message; where it is absent, nothing is told of what the task lacks.

        Raises:
            MeshError: `INVALID` with each of them, or the first of a provider's.
        """
        if (steers := STEERING.get(provider.config)) is not None:
            steers(config, path, detail)
        if provider.name != LOCAL:
            return
        if any(output.media is MediaKind.IMAGE for output in task_type.outputs):
            steering(config, providers_pb2.LocalPictureConfig.DESCRIPTOR, path)
        if task_type.steered_by is None:
            return
        self._check_thresholds(steering(config, task_type.steered_by, path), path)

    def _check_thresholds(self, settings: Any, path: str) -> None:
        for network in CONSISTENCY_NETWORKS:
            member = f"{network}_threshold"
            if network not in self._compared_by and getattr(settings, member, 0) > 0:
                raise invalid(
                    f"{path}.{member}",
                    f"This installation has no {network.upper()} network; "
                    "only 0, which switches the check off, is possible",
                    "network_not_served",
                )

    @staticmethod
    def check_capabilities(names: Iterable[str], provider: ProviderSpec, task_type: TaskTypeSpec, path: str) -> None:
        """Refuse capabilities that the provider does not have for a task type.

        Raises:
            MeshError: `INVALID` naming the first of them.
        """
        known = provider.tasks[task_type.name]
        for index, name in enumerate(names):
            if name not in known:
                raise invalid(
                    f"{path}[{index}]",
                    f"Provider {provider.name} has no capability {name!r} for {task_type.name} tasks; "
                    f"it has {', '.join(sorted(known)) or 'none'}",
                    "unknown_capability",
                )

    def check_fields(self, fields: Mapping[str, str], provider: ProviderSpec, task_type: TaskTypeSpec) -> None:
        """Refuse fields that the provider cannot follow.

        Args:
            fields: Fields that a task sets, with the capability that each takes.
            provider: The provider.
            task_type: Type of the task.

        Raises:
            MeshError: `INVALID` naming the first of them.
        """
        for field, capability in fields.items():
            if capability in provider.tasks[task_type.name]:
                continue
            able = [one for one in self.served_providers if capability in PROVIDERS[one].tasks.get(task_type.name, ())]
            raise invalid(
                f"task.{task_type.detail}.{field}",
                f"takes the capability {capability}, which {provider.name} has not for {task_type.name} tasks; "
                + (f"{', '.join(able)} has it" if able else "no provider that is served has it"),
                "capability_missing",
            )

    def relied_on(
        self, listed: Sequence[str], detail: Any, task_type: TaskTypeSpec, provider: ProviderSpec, path: str
    ) -> list[str]:
        """Return the capabilities that a task relies on: those that its caller lists, or else those it needs.

        Args:
            listed: What the caller lists, if anything.
            detail: The task's Create message; where it is absent, nothing is told of what the task lacks.
            task_type: Its type.
            provider: The provider.
            path: Path of the list, for the error.

        Raises:
            MeshError: `INVALID` where the provider, or the caller's list, lacks one.
        """
        self.check_capabilities(listed, provider, task_type, path)
        needed = task_type.relied_on(detail)
        for name, field in needed.items():
            if name not in provider.tasks[task_type.name]:
                raise invalid(
                    f"task.{task_type.detail}.{field}",
                    f"asks for {name}, which provider {provider.name} cannot do for {task_type.name} tasks",
                    "unknown_capability",
                )
            if listed and name not in listed:
                raise invalid(path, f"must contain {name}, which {field} asks for", "capability_required")
        return list(listed) or list(needed)


def prefix_of(task_type: str, task_id: object) -> str:
    """Folder of a task's objects, ending in `/`."""
    return TASK_TYPES[task_type].folder(task_id)
