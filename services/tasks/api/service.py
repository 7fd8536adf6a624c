"""Use cases of callers: create, read, change, cancel, clean up, delete."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any
from uuid import UUID

from atelier.tasks.v1 import task_pb2, tasks_service_pb2
from prometheus_client import Counter

from meshkit import metrics
from meshkit.access import Caller
from meshkit.catalog import TASK_TYPES
from meshkit.db import DatabaseUnavailableError
from meshkit.errors import ErrorKind, MeshError, invalid
from meshkit.idempotency import IdempotencyKey
from meshkit.lingers import COMMIT_LINGER
from meshkit.logging import get_logger
from meshkit.microbatch import GroupCall
from meshkit.objects import ObjectStore
from services.tasks.api import updates
from services.tasks.api.creation import TENANT_PATH, TaskPreparer
from services.tasks.api.quotas import TenantQuotas
from services.tasks.catalog import Catalog, prefix_of
from services.tasks.convert import write_task
from services.tasks.domain import AttemptRecord, AttemptRef, TaskRecord, TaskStatus
from services.tasks.errors import executing, identifier_used, illegal_transition, task_not_found
from services.tasks.inputs.validator import AcceptedInput, InputValidator
from services.tasks.metrics import COMMIT_MEMBERS
from services.tasks.notifier import Notifier
from services.tasks.service_requests import ServiceRequestNote
from services.tasks.store import Created, Creation, TaskFilter, TaskStore

_log = get_logger(__name__)

_CREATED = metrics.counter("tasks_created", "Tasks accepted", ("queue", "task_type"))
_ENDED = metrics.counter("tasks_ended", "Tasks that ended", ("task_type", "outcome"))
_commit_members = COMMIT_MEMBERS.labels("create")


@cache
def _accepted(queue: str, task_type: str) -> Counter:
    # Looking a metric up by its labels costs more than counting in it; queues and types are few.
    return _CREATED.labels(queue, task_type)


_USED_UP = (ErrorKind.INVALID, ErrorKind.NOT_FOUND)


class TasksService:
    """Tasks, as their callers know them.

    Args:
        store: The database.
        catalog: What is served.
        preparer: Makes tasks of requests.
        inputs: Checks inputs and moves them into place.
        objects: The object store.
        notifier: Tells other replicas and workers what happened.
        quotas: Holds tenants to their limits.
    """

    def __init__(
        self,
        store: TaskStore,
        *,
        catalog: Catalog,
        preparer: TaskPreparer,
        inputs: InputValidator,
        objects: ObjectStore,
        notifier: Notifier,
        quotas: TenantQuotas,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._preparer = preparer
        self._inputs = inputs
        self._objects = objects
        self._notifier = notifier
        self._quotas = quotas
        self._creates: GroupCall[Creation, Created] = GroupCall(self._commit, name="creates", linger=COMMIT_LINGER)

    async def close(self) -> None:
        """Wait for creates that are being committed."""
        await self._creates.finish()

    async def create(
        self, request: tasks_service_pb2.CreateTaskRequest, caller: Caller, key: IdempotencyKey | None
    ) -> tuple[bytes | TaskRecord, bool]:
        """Accept a task.

        Args:
            request: What is asked for.
            caller: Who asks.
            key: Idempotency key, if one was given.

        Returns:
            The task, or the serialized answer to replay; and whether it is a replay.

        Raises:
            MeshError: `INVALID`, `FORBIDDEN`, `CONFLICT`; nothing is left behind then.
        """
        if key is None:
            return await self._accept(request, caller, None)
        # Keys are kept by the task's tenant, as they are stored with it; who may not name it learns of no replay.
        tenant = caller.tenant_of(request.task.origin_tenant_id, TENANT_PATH)
        replay = await self._store.find_replay(tenant, key)
        if replay is not None:
            return replay, True
        try:
            return await self._accept(request, caller, key)
        except MeshError as error:
            # A duplicate at the same moment names the same upload, which is gone once the first of them is committed.
            replay = await self._store.find_replay(tenant, key) if error.kind in _USED_UP else None
            if replay is None:
                raise
            return replay, True

    async def _accept(
        self, request: tasks_service_pb2.CreateTaskRequest, caller: Caller, key: IdempotencyKey | None
    ) -> tuple[bytes | TaskRecord, bool]:
        if not caller.is_service:  # the step of a workflow that was accepted goes on
            await self._quotas.admit(caller.tenant_of(request.task.origin_tenant_id, TENANT_PATH))
        record, inputs = await self._preparer.prepare(request, caller)
        written = [item for item in inputs if item.is_written]
        if written:
            await self._store.note_intent(record, prefix_of(record.task_type, record.id))
        creation = Creation(
            record,
            response=_encode(record) if key is not None else b"",
            encode=_encode,
            key=key,
            has_objects=bool(written),
            named=request.HasField("task_id"),
        )
        created = await self._write(creation, written)
        if created.replay is not None:
            return created.replay, True
        assert created.record is not None, "a create that is no replay has a task"
        if created.existed and (created.record.tenant, created.record.kind) != (record.tenant, record.kind):
            raise identifier_used(record.id)
        return created.record, False

    async def _write(self, creation: Creation, written: list[AcceptedInput]) -> Created:
        """Write the inputs, then the task; where the task does not come to be, neither do they."""
        record = creation.record
        try:
            if written:
                await self._inputs.write(record.tenant, written)
            created = await self._creates.submit(creation)
        except (DatabaseUnavailableError, asyncio.CancelledError):
            # Whether the commit takes place is unknown, a caller that leaves does not stop it: the sweeper finds out.
            raise
        except BaseException:
            await self._discard(creation, written)
            raise
        if created.replay is not None:
            await self._discard_unless_its_own(created.replay, creation, written)
            return created
        if created.existed:
            await self._discard(creation, written)
            return created
        await self._settle(record, written)
        _accepted(record.queue_name, record.task_type).inc()
        return created

    async def get(self, task_id: UUID, caller: Caller, task_type: str | None = None) -> TaskRecord:
        """Return a task.

        Args:
            task_id: The task.
            caller: Who asks.
            task_type: Type that the route is confined to.

        Raises:
            MeshError: `NOT_FOUND`.
        """
        record = caller.seen(await self._store.get(task_id), task_id, task_not_found)
        return _of_type(record, task_type)

    async def list_tasks(self, which: TaskFilter, caller: Caller, skip: int, limit: int) -> list[TaskRecord]:
        """Tasks of the caller's tenant, of all tenants for operators and support; newest first."""
        if not caller.reads_across:
            tenant = caller.require_tenant()
            if which.tenant not in (None, tenant):
                return []
            which = replace(which, tenant=tenant)
        return await self._store.list_tasks(which, skip, limit)

    async def attempts(self, task_id: UUID, caller: Caller) -> list[AttemptRecord]:
        """Return attempts made at a task, oldest first."""
        caller.seen(await self._store.get(task_id), task_id, task_not_found)
        return await self._store.attempts(task_id)

    async def service_requests(self, task_id: UUID, caller: Caller) -> Sequence[ServiceRequestNote]:
        """Return requests made to providers for a task, oldest first."""
        caller.seen(await self._store.get(task_id), task_id, task_not_found)
        return await self._store.service_requests(task_id)

    async def update(
        self,
        task_id: UUID,
        values: task_pb2.TaskUpdate,
        mask: Sequence[str],
        caller: Caller,
        task_type: str | None = None,
    ) -> TaskRecord:
        """Change a task.

        Args:
            task_id: The task.
            values: New values.
            mask: Members to change; the set ones where empty.
            caller: Who asks.
            task_type: Type that the route is confined to.

        Raises:
            MeshError: `NOT_FOUND`, `FORBIDDEN`, `CONFLICT`, `INVALID`.
        """
        record = _of_type(caller.seen(await self._store.get(task_id), task_id, task_not_found, write=True), task_type)
        update = updates.Update.of(values, mask, operator=caller.is_operator)
        await self._check_inputs(record, update)
        cancels = update.status is TaskStatus.CANCELLED

        def body(current: TaskRecord) -> TaskRecord:
            changed = updates.check(current, update)
            if not changed.paths - {"status"} and (cancels or update.status in (None, current.state)):
                return current
            return updates.apply(current, changed, self._catalog)

        before, after = await self._store.modify(task_id, body)
        if cancels and before.state is not TaskStatus.CANCELLED:
            return await self._cancel(after)
        if before.version != after.version:
            self._notifier.committed()
            if after.status == TaskStatus.PENDING:
                self._notifier.waiting(after.queue_name)
        return after

    async def cancel(self, task_id: UUID, caller: Caller, task_type: str | None = None) -> TaskRecord:
        """Cancel a task; one that is cancelled already stays as it is.

        Raises:
            MeshError: `NOT_FOUND`, or `CONFLICT` where it has completed or failed.
        """
        record = caller.seen(await self._store.get(task_id), task_id, task_not_found, write=True)
        return await self._cancel(_of_type(record, task_type))

    async def cleanup(self, task_id: UUID, caller: Caller) -> tuple[TaskRecord, list[str]]:
        """Delete a task's files and hide it from lists; a waiting one is cancelled first.

        Returns:
            The task, and the paths that were deleted.

        Raises:
            MeshError: `NOT_FOUND`, or `CONFLICT` while it executes.
        """
        record = caller.seen(await self._store.get(task_id), task_id, task_not_found, write=True)
        record = await self._put_to_rest(record, "cleaned up")
        _, after = await self._store.modify(task_id, lambda current: current._replace(is_deleted=True))
        deleted = await self._objects.delete_prefix(record.tenant, prefix_of(record.task_type, record.id))
        return after, sorted(deleted)

    async def delete(self, task_id: UUID, caller: Caller) -> TaskRecord:
        """Delete a task's files and its row; a waiting one is cancelled first.

        Returns:
            The task as it was.

        Raises:
            MeshError: `NOT_FOUND`, or `CONFLICT` while it executes.
        """
        record = caller.seen(await self._store.get(task_id), task_id, task_not_found, write=True)
        await self._put_to_rest(record, "deleted")
        # Files first: a row without files can be deleted again, files without a row would be nobody's.
        await self._objects.delete_prefix(record.tenant, prefix_of(record.task_type, record.id))
        if not await self._store.remove(task_id):
            raise task_not_found(task_id)
        return record

    async def _put_to_rest(self, record: TaskRecord, action: str) -> TaskRecord:
        if record.state is TaskStatus.EXECUTING:
            raise executing(action)
        if record.state is not TaskStatus.PENDING:
            return record

        def only_waiting(current: TaskRecord) -> TaskRecord:
            if current.state is TaskStatus.EXECUTING:
                raise executing(action)
            return current

        # A worker may be faster between the two: the cancel then fences it, as it would for a caller.
        await self._store.modify(record.id, only_waiting)
        return await self._cancel(record)

    async def _cancel(self, record: TaskRecord) -> TaskRecord:
        before, after = await self._store.cancel(record.id)
        if before.state in (TaskStatus.COMPLETED, TaskStatus.FAILED):
            raise illegal_transition(before.state, TaskStatus.CANCELLED)
        if before.state is not TaskStatus.CANCELLED:
            _ENDED.labels(after.task_type, TaskStatus.CANCELLED.value).inc()
            self._notifier.committed()
        if before.lease_session is not None:
            self._notifier.cancelled(before.lease_session, AttemptRef(before.id, before.attempt))
        return after

    async def _check_inputs(self, record: TaskRecord, update: updates.Update) -> None:
        task_type = TASK_TYPES[record.task_type]
        named = task_pb2.TaskUpdate()
        for path in update.paths.intersection(task_type.adapters):
            if update.values.HasField(path):  # type: ignore[arg-type]  # a checked name of the message
                setattr(named, path, getattr(update.values, path))
        if update.paths.intersection(task_type.adapters):
            await self._inputs.check_adapters(task_type, named, record.tenant, "update")
        for path in update.paths.intersection(image.public for image in task_type.inputs):
            value = update.value(path)
            if value is not None:
                if value.startswith("data:"):
                    raise invalid(f"update.{path}", "must be an address or a path in storage")
                kept = await self._inputs.check_reference(value, record.tenant, f"update.{path}")
                setattr(update.values, path, kept)

    async def _commit(self, creations: Sequence[Creation]) -> list[Created | Exception]:
        """Commit creates that arrived together; what cannot go with the others goes alone."""
        _commit_members.observe(len(creations))
        together, alone = _divide(creations)
        results: dict[int, Created | Exception] = {}
        if together:
            try:
                created = await self._store.create_many([creations[index] for index in together])
            except Exception as error:
                _log.info("create_batch_split", members=len(together), cause=type(error).__name__)
                alone = sorted([*together, *alone])
            else:
                for index, answer in zip(together, created, strict=True):
                    if answer is None:
                        alone.append(index)
                    else:
                        results[index] = answer
        for index in alone:
            results[index] = await _attempt(partial(self._create_alone, creations[index]))
        self._notifier.committed()
        # Once a queue: who looks finds all of them.
        fresh = [one for one in results.values() if isinstance(one, Created) and not one.existed]
        for queue in {one.record.queue_name for one in fresh if one.record is not None}:
            self._notifier.waiting(queue)
        return [results[index] for index in range(len(creations))]

    async def _create_alone(self, creation: Creation) -> Created:
        created = await self._store.create_one(creation)
        # A repetition after a lost commit finds the task that the first try wrote.
        return replace(created, existed=False) if created.existed and not creation.named else created

    async def _settle(self, record: TaskRecord, written: list[AcceptedInput]) -> None:
        try:
            await self._inputs.settle(record.tenant, written)
        except MeshError as error:
            _log.warning("uploads_left_to_sweeper", task_id=str(record.id), reason=error.reason)

    async def _discard(self, creation: Creation, written: list[AcceptedInput]) -> None:
        # Inputs below a chosen identifier may be those of the task that has it: the sweeper decides by its row.
        if not written or creation.named:
            return
        record = creation.record
        try:
            await self._inputs.discard(record.tenant, record.task_type, record.id)
        except MeshError as error:
            _log.warning("inputs_left_to_sweeper", task_id=str(record.id), reason=error.reason)

    async def _discard_unless_its_own(self, replay: bytes, creation: Creation, written: list[AcceptedInput]) -> None:
        # A commit whose answer was lost is repeated and finds itself: the inputs are then those of the task.
        if written and tasks_service_pb2.CreateTaskResponse.FromString(replay).task.id != str(creation.record.id):
            await self._discard(creation, written)


def _divide(creations: Sequence[Creation]) -> tuple[list[int], list[int]]:
    """Which creates may share a transaction: of one identifier, and of one idempotency key, only the first.

    A key is stored with its answer. Where the identifier was chosen, that may be an older task: such a one goes alone.
    """
    together: list[int] = []
    alone: list[int] = []
    seen: set[object] = set()
    for index, creation in enumerate(creations):
        record, key = creation.record, creation.key
        if key is None and not creation.named:
            # Its identifier was drawn for it.
            together.append(index)
            continue
        marks: set[object] = {record.id} if key is None else {record.id, (record.tenant, key.method, key.key)}
        (alone if marks & seen or (creation.named and key is not None) else together).append(index)
        seen |= marks
    return together, alone


async def _attempt(work: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await work()
    except Exception as error:
        return error


def _encode(record: TaskRecord) -> bytes:
    response = tasks_service_pb2.CreateTaskResponse()
    write_task(response.task, record)
    return response.SerializeToString()


def _of_type(record: TaskRecord, task_type: str | None) -> TaskRecord:
    if task_type is not None and record.task_type != task_type:
        raise task_not_found(record.id)
    return record
