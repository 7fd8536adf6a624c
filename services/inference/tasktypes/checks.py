"""What the types share that redraw parts of a picture and check them: settings, networks, progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_LOCAL
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from google.protobuf.descriptor import Descriptor

from meshkit.catalog import provider_numbered
from meshkit.likeness import NETWORKS
from meshkit.validation import apply_defaults
from meshkit.worker.handlers import Need, TaskCancelled, TaskContext
from services.inference.tasktypes.members import steered

if TYPE_CHECKING:  # it imports OpenCV, which the parent never does
    from modelkit.consistency import ConsistencyCheck

_STEPS = 100


def settings_of(spec: CreateTask, task: Task, message: Descriptor) -> Any:
    """Read what steers a task, with its defaults: its provider's settings of this kind, else members of its `config`.

    Raises:
        TaskFailed: A member of `config` does not hold.
    """
    provider = provider_numbered(task.provider_type or spec.provider_type or PROVIDER_TYPE_LOCAL)
    holder = task if task.HasField("provider_config") else spec
    found = getattr(holder.provider_config, provider.config)
    if found.DESCRIPTOR is not message:
        return steered(spec, task, message)
    settings = type(found)()
    settings.CopyFrom(found)
    apply_defaults(settings)
    return settings


def check_needs(settings: Any) -> Sequence[Need]:
    """Name the networks of the checks that are on."""
    return [Need(name, "likeness", name) for name in NETWORKS if getattr(settings, f"{name}_threshold") > 0]


def check_of(settings: Any, lent: Mapping[str, Any]) -> ConsistencyCheck:
    """Return the check that a type's settings ask for by their three thresholds."""
    from modelkit.consistency import ConsistencyCheck, Thresholds  # noqa: PLC0415 -- OpenCV, in the child alone

    thresholds = Thresholds(settings.ssim_threshold, settings.lpips_threshold, settings.dists_threshold)
    return ConsistencyCheck(thresholds, {name: lent[name] for name in NETWORKS if name in lent})


def share_of(context: TaskContext) -> Callable[[float], None]:
    """Return what reports the share of an attempt that is done, 0 to 1, and stops it where it was cancelled."""

    def done(share: float) -> None:
        if context.cancelled():
            raise TaskCancelled
        context.progress(round(share * _STEPS), _STEPS)

    return done
