"""Who may change what of a task. Pure: from a task and an update to the changed task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from atelier.tasks.v1 import task_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from meshkit.catalog import DECLARED, PROVIDERS, TASK_TYPES, Change, TaskTypeSpec
from meshkit.errors import MeshError, conflict, forbidden, invalid
from services.tasks.api.applications import APPLICATION, follow_application, refuse_calls
from services.tasks.api.creation import check_config, warm_keys
from services.tasks.catalog import Catalog
from services.tasks.convert import CATEGORY_NAME, STATUS_NAME, TASK_TYPE_NAME, fold_result, moment, to_task
from services.tasks.domain import Fallback, TaskRecord, TaskStatus, lane_of, may
from services.tasks.errors import executing, illegal_transition
from services.tasks.providers.gates import key_of


@dataclass(frozen=True, slots=True)
class Update:
    """An update that a caller asks for.

    Attributes:
        values: The new values.
        paths: Members to change; one that is unset in `values` is cleared.
        operator: Whether the caller may change what belongs to the scheduler.
    """

    values: task_pb2.TaskUpdate
    paths: frozenset[str]
    operator: bool

    @classmethod
    def of(cls, values: task_pb2.TaskUpdate, mask: Iterable[str], *, operator: bool) -> Update:
        """Build an update; without a mask its set members are meant.

        Raises:
            MeshError: `INVALID` where the mask names what no update has.
        """
        paths = frozenset(mask) or frozenset(field.name for field, _ in values.ListFields())
        for path in sorted(paths):
            if path not in values.DESCRIPTOR.fields_by_name:
                raise invalid("update_mask", f"names {path!r}, which no update has", "unknown_field")
        return cls(values, paths, operator)

    @property
    def status(self) -> TaskStatus | None:
        """The state asked for, if any."""
        if "status" not in self.paths or not self.values.HasField("status"):
            return None
        return TaskStatus(STATUS_NAME[self.values.status])

    def value(self, name: str) -> Any:
        """Return a member's new value; None where it is cleared."""
        field = self.values.DESCRIPTOR.fields_by_name[name]
        if field.is_repeated:
            return list(getattr(self.values, name))
        values: Any = self.values
        return getattr(values, name) if values.HasField(name) else None


def change_of(task_type: TaskTypeSpec, path: str) -> Change:
    """Return who may change a member of a task of this type.

    Raises:
        MeshError: `INVALID` where tasks of the type have no such member.
    """
    if path not in DECLARED.type_members:
        return DECLARED.changes[path]
    if path not in task_type.changes:
        raise invalid(f"update.{path}", f"is no member of {task_type.name} tasks", "unknown_field")
    return task_type.changes[path]


def check(record: TaskRecord, update: Update) -> Update:
    """Refuse what the caller may not change, or what can no longer change.

    A member that is named with the value it has is no change, so that a caller may send a task back whole.

    Returns:
        The update without the members that do not change.

    Raises:
        MeshError: `FORBIDDEN`, `CONFLICT` or `INVALID`, with the first member in question.
    """
    task_type = TASK_TYPES[record.task_type]
    shown = to_task(record)
    detail = getattr(shown, task_type.detail)
    same: set[str] = set()
    for path in sorted(update.paths):
        change = change_of(task_type, path)
        if path == "origin_instance" and update.value(path) is None:
            raise invalid("update.origin_instance", "Field required: a task has one for life", "missing")
        if change is Change.WHILE_PENDING and path == APPLICATION and update.value(path) is None:
            raise invalid(f"update.{path}", "Field required: a task cannot do without its application", "missing")
        if change is Change.ANY_TIME:
            continue
        owner = detail if path in DECLARED.type_members else shown
        known = path in owner.DESCRIPTOR.fields_by_name
        if change is Change.IGNORED or _unchanged(record, owner if known else None, path, update):
            same.add(path)
        elif change is Change.NEVER:
            raise invalid(f"update.{path}", "never changes", "immutable")
        elif change is Change.WHILE_PENDING:
            if record.state is not TaskStatus.PENDING:
                raise conflict(f"{path} can change only while the task is PENDING", reason="TASK_STARTED")
        elif not update.operator:
            raise forbidden(f"{path} can be changed only with the scope operator", reason="OPERATOR_ONLY")
    _check_status(record, update)
    return replace(update, paths=update.paths - same)


def apply(record: TaskRecord, update: Update, catalog: Catalog) -> TaskRecord:
    """Return the changed task.

    Args:
        record: The task; it was checked.
        update: What to change, as `check` left it.
        catalog: What is served.
    """
    task_type = TASK_TYPES[record.task_type]
    changes: dict[str, Any] = {}
    body = fold_result(record)
    detail = getattr(body, task_type.detail)
    for path in sorted(update.paths - {"status"}):
        if path in DECLARED.type_members:
            _set(detail, path, update.value(path))
        elif path in _COLUMNS:
            changes[path] = _COLUMNS[path](update.value(path))
        elif path in body.DESCRIPTOR.fields_by_name:
            _set(body, path, update.value(path))
    asked = {path for path in update.paths if task_type.changes.get(path) is Change.WHILE_PENDING}
    if asked:
        spec = _spec_after(record, update, task_type, asked)
        if APPLICATION in asked:
            follow_application(spec, body, update.value(APPLICATION))
        changes["spec"] = spec.SerializeToString()
        adapters = [getattr(detail, name) for name in task_type.adapters if detail.HasField(name)]
        changes["warm_keys"] = warm_keys(adapters, body)
    requested = getattr(task_pb2.CreateTask.FromString(changes.get("spec", record.spec)), task_type.detail)
    _check_providers(record, update, requested, body, catalog)
    if "provider_type" in update.paths or "queue_name" in update.paths:
        changes.update(_routed(record, update, catalog))
    if "fallback_provider_type" in update.paths and record.fallback != Fallback.TAKEN:
        changes["fallback"] = Fallback.AVAILABLE.value if body.HasField("fallback_provider_type") else None
    changes.update(_lane_after(record, update, changes.get("provider_type", record.provider_type), body))
    if update.status is TaskStatus.FAILED:
        changes |= {"status": TaskStatus.FAILED.value, "completed_at": record.updated_at, "not_before": None}
    return record._replace(**changes, body=body.SerializeToString(), result=None)


def _check_status(record: TaskRecord, update: Update) -> None:
    if "status" not in update.paths:
        return
    wanted = update.status
    if wanted is None:
        raise invalid("update.status", "cannot be cleared", "missing")
    if wanted is record.state:
        return
    if wanted is TaskStatus.CANCELLED:
        if not may(record.state, wanted):
            raise illegal_transition(record.state, wanted)
        return
    if not update.operator:
        raise forbidden("Callers may only set status to CANCELLED", reason="OPERATOR_ONLY")
    # Starting and ending attempts is the workers' part; an operator may give up a task that waits.
    if wanted is not TaskStatus.FAILED or record.state is not TaskStatus.PENDING:
        raise illegal_transition(record.state, wanted)


def _check_providers(record: TaskRecord, update: Update, detail: Any, body: task_pb2.Task, catalog: Catalog) -> None:
    """Hold what changed of the providers to the rules of a create, and fill what is relied on.

    Args:
        record: The task before.
        update: What changes.
        detail: Its Create message.
        body: Its members after the change; capabilities are filled in.
        catalog: What is served.
    """
    task_type = TASK_TYPES[record.task_type]
    if "config" in update.paths and record.state is TaskStatus.PENDING:
        catalog.check_config(body.config, task_type, PROVIDERS[record.provider_type], "update.config", detail)
    if {"active_provider_capabilities", "provider_type"} & update.paths:
        number = update.value("provider_type") or PROVIDERS[record.provider_type].number
        body.active_provider_capabilities[:] = catalog.relied_on(
            body.active_provider_capabilities,
            detail,
            task_type,
            catalog.provider_of(number, task_type, "update.provider_type"),
            "update.active_provider_capabilities",
        )
    if body.HasField("fallback_provider_type") and any(path.startswith("fallback_") for path in update.paths):
        fallback = catalog.provider_of(body.fallback_provider_type, task_type, "update.fallback_provider_type")
        body.fallback_provider_capabilities[:] = catalog.relied_on(
            body.fallback_provider_capabilities,
            detail,
            task_type,
            fallback,
            "update.fallback_provider_capabilities",
        )
        if body.HasField("fallback_provider_config"):
            check_config(body.fallback_provider_config, fallback, "update.fallback_provider_config")
            refuse_calls(body.fallback_provider_config, "update.fallback_provider_config")
            catalog.check_network(body.fallback_provider_config, "update.fallback_provider_config")


def _routed(record: TaskRecord, update: Update, catalog: Catalog) -> Mapping[str, Any]:
    if record.state is TaskStatus.EXECUTING:
        raise executing("moved")
    provider = PROVIDERS[record.provider_type]
    if "provider_type" in update.paths:
        task_type = TASK_TYPES[record.task_type]
        provider = catalog.provider_of(update.values.provider_type, task_type, "update.provider_type")
    queue = record.queue_name
    if "queue_name" in update.paths:
        try:
            queue = catalog.queue_of(update.value("queue_name"), provider)
        except MeshError as error:
            raise invalid("update.queue_name", error.message, "unknown_queue") from None
    return {"provider_type": provider.name, "queue_name": queue}


def _lane_after(record: TaskRecord, update: Update, provider_type: str, body: task_pb2.Task) -> Mapping[str, Any]:
    if not {"provider_type", "provider_config", APPLICATION} & update.paths:
        return {}
    provider = PROVIDERS[provider_type]
    return {"lane": lane_of(record.task_type, provider.name, key=key_of(provider, body.provider_config))}


def _spec_after(record: TaskRecord, update: Update, task_type: TaskTypeSpec, paths: Iterable[str]) -> Any:
    spec = task_pb2.CreateTask.FromString(record.spec)
    detail = getattr(spec, task_type.detail)
    images = {image.public: image for image in task_type.inputs}
    for path in paths:
        if path in images:
            for source in images[path].sources:
                detail.ClearField(source.field)
            _set(detail, images[path].kept.field, update.value(path))
        elif path in detail.DESCRIPTOR.fields_by_name:
            _set(detail, path, update.value(path))
    return spec


def _set(message: Any, name: str, value: Any) -> None:
    field = message.DESCRIPTOR.fields_by_name[name]
    message.ClearField(name)
    if value is None:
        return
    if field.is_repeated:
        getattr(message, name).extend(value)
    elif field.message_type is not None:
        getattr(message, name).CopyFrom(value)
    else:
        setattr(message, name, value)


def _unchanged(record: TaskRecord, owner: Any, path: str, update: Update) -> bool:
    if path == "task_type":
        return TASK_TYPE_NAME.get(update.values.task_type) == record.task_type
    if owner is None:
        return update.value(path) in (None, [])
    field = owner.DESCRIPTOR.fields_by_name[path]
    if field.is_repeated:
        return bool(list(getattr(owner, path)) == update.value(path))
    if field.has_presence and not owner.HasField(path):
        return update.value(path) is None
    value = update.value(path)
    if isinstance(value, Timestamp):
        # Answers print milliseconds, rows hold microseconds.
        return bool(value.ToMilliseconds() == getattr(owner, path).ToMilliseconds())
    return bool(getattr(owner, path) == value)


def _optional_moment(value: Any) -> Any:
    return None if value is None else moment(value)


_COLUMNS: Mapping[str, Callable[[Any], Any]] = {
    "priority": lambda value: value or 0,
    "executor_type": lambda value: value,
    "executor_instance": lambda value: value,
    "errors": lambda value: value,
    "origin_instance": lambda value: value or "",
    "origin_zone": lambda value: value,
    "origin_reference": lambda value: value,
    "started_at": _optional_moment,
    "retry_count": lambda value: value or 0,
    "progress": lambda value: value or 0.0,
    "is_resumed": bool,
    "resume_attempt_count": lambda value: value or 0,
    "last_resume_attempt": _optional_moment,
    "error_category": lambda value: CATEGORY_NAME[value] if value else None,
}
