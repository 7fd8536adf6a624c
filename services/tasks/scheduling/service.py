"""Use cases of workers: sessions, leases, reports and the ends of attempts."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple
from uuid import UUID, uuid4

from atelier.tasks.v1 import worker_service_pb2

from meshkit import metrics
from meshkit.auth import Principal
from meshkit.errors import MeshError, forbidden, invalid, unavailable
from meshkit.lingers import COMMIT_LINGER
from meshkit.logging import get_logger
from meshkit.microbatch import GroupCall
from services.tasks.catalog import LOCAL, QUEUES
from services.tasks.convert import from_ref
from services.tasks.domain import (
    AttemptRef,
    ErrorCategory,
    RetryPolicy,
    SessionRecord,
    TaskRecord,
    TaskStatus,
    WorkerLoad,
    clip_error,
)
from services.tasks.errors import lease_lost, session_not_found, task_ended
from services.tasks.metrics import COMMIT_MEMBERS
from services.tasks.notifier import Notifier
from services.tasks.providers.gates import gate_of
from services.tasks.scheduling import result_paths as results
from services.tasks.scheduling.polls import Poll
from services.tasks.scheduling.progress import ProgressRelay
from services.tasks.scheduling.scheduler import Scheduler
from services.tasks.service_requests import MAX_RESUME_BYTES, LeasedTask, NoteVerdict, ServiceRequestNote
from services.tasks.store import AttemptEnd, CompletedAttempt, LeaseState, TaskStore
from services.tasks.usage.domain import DeviceUse

_log = get_logger(__name__)

_REMEMBERED_SESSIONS = 4096
# What an answer holds beside the rows of its tasks: names, errors, times. Small limits leave half of themselves.
_REST_OF_ANSWER_BYTES = 512 * 1024

_ENDED = metrics.counter("tasks_ended", "Tasks that ended", ("task_type", "outcome"))
_ATTEMPTS = metrics.counter("tasks_attempts_lost", "Attempts that ended without a result", ("task_type", "status"))
_RUN_SECONDS = metrics.histogram(
    "tasks_run_seconds", "From the first lease to the result", ("task_type",), (0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 1800)
)
# Each combination of labels is looked up once: the look-up costs more than the counting.
_ended = cache(_ENDED.labels)
_run_seconds = cache(_RUN_SECONDS.labels)
_commit_members = COMMIT_MEMBERS.labels("complete")


class GiveUp(NamedTuple):
    """What a worker is to end.

    Attributes:
        refs: Attempts that are not its session's any more.
        ended: Those of them whose tasks have ended.
    """

    refs: Sequence[AttemptRef]
    ended: Sequence[AttemptRef]


class WorkerSessions:
    """What workers ask of the scheduler.

    Args:
        store: The database.
        scheduler: Gives work to polls.
        progress: Passes progress on.
        notifier: Tells other replicas and workers what happened.
        policy: How often a task is tried.
        weights: Shares of tenants.
        max_message_bytes: Largest answer; a task that fits in none fails.
        ttl_seconds: Life of a session without a heartbeat.
        acknowledge_seconds: A lease that its worker does not name for so long goes back.
        max_wait_seconds: Longest wait of a poll.
        on_completed: Told of each attempt that has completed: its task, its device seconds, the slots of its worker.
    """

    def __init__(
        self,
        store: TaskStore,
        *,
        scheduler: Scheduler,
        progress: ProgressRelay,
        notifier: Notifier,
        policy: RetryPolicy,
        weights: Mapping[str, float],
        max_message_bytes: int,
        ttl_seconds: float,
        acknowledge_seconds: float,
        max_wait_seconds: float,
        on_completed: Callable[[TaskRecord, float, int], None] = lambda *_: None,
    ) -> None:
        self._store = store
        self._on_completed = on_completed
        self._scheduler = scheduler
        self._progress = progress
        self._notifier = notifier
        self._policy = policy
        self._weights = weights
        self._max_task_bytes = max_message_bytes - min(_REST_OF_ANSWER_BYTES, max_message_bytes // 2)
        self._ttl = ttl_seconds
        self._acknowledge = acknowledge_seconds
        self._max_wait = max_wait_seconds
        self._known: OrderedDict[UUID, SessionRecord] = OrderedDict()
        self._returning: set[asyncio.Task[None]] = set()
        self._completions: GroupCall[CompletedAttempt, AttemptEnd] = GroupCall(
            self._commit, name="completions", linger=COMMIT_LINGER
        )

    async def close(self) -> None:
        """Wait for completions and returned leases that are being committed."""
        await asyncio.gather(*self._returning, return_exceptions=True)
        await self._completions.finish()

    async def open(
        self,
        principal: Principal,
        *,
        name: str,
        kind: str,
        queues: Sequence[str],
        slots: int,
        pairs: Sequence[str],
    ) -> SessionRecord:
        """Open a session.

        Args:
            principal: Who calls.
            name: The worker's name.
            kind: Its kind; `local` where empty.
            queues: Queues it serves.
            slots: Attempts it runs at once.
            pairs: What it runs, named by `domain.lane_of`.

        Raises:
            MeshError: `INVALID` for an unknown queue or a worker that executes nothing, `FORBIDDEN` for a queue that
                its token is not bound to.
        """
        for index, queue in enumerate(queues):
            if queue not in QUEUES:
                raise invalid(f"queues[{index}]", f"Unknown queue {queue!r}", "unknown_queue")
            if principal.queues is not None and queue not in principal.queues:
                raise forbidden(f"The token is not bound to the queue {queue!r}", reason="QUEUE_FORBIDDEN")
        if not pairs:
            raise invalid("pairs", "Field required: a worker names what it runs", "missing")
        session = SessionRecord(
            uuid4(),
            principal.subject,
            name,
            kind or "local",
            tuple(dict.fromkeys(queues)),
            slots,
            tuple(dict.fromkeys(pairs)),
        )
        await self._store.open_session(session, self._ttl)
        self._remember(session)
        return session

    async def lease(
        self,
        principal: Principal,
        session_id: UUID,
        *,
        sequence: int,
        max_leases: int,
        wait_seconds: float,
        warm: frozenset[str],
        full_tenants: frozenset[str],
    ) -> list[LeasedTask]:
        """Wait for work; see `Scheduler.wait`."""
        session = await self._session(session_id, principal)
        try:
            poll = self._scheduler.park(
                session, sequence=sequence, max_leases=max_leases, warm=warm, full_tenants=full_tenants
            )
            try:
                records = await self._scheduler.wait(poll, min(wait_seconds, self._max_wait))
                if any(record.bytes > self._max_task_bytes for record in records):
                    records = await self._fail_uncarried(session, records)
                return await self._with_requests(records)
            except asyncio.CancelledError:
                task = asyncio.get_running_loop().create_task(self._give_back(poll))
                self._returning.add(task)
                task.add_done_callback(self._returning.discard)
                raise
        except MeshError:
            self._known.pop(session_id, None)
            raise

    async def _with_requests(self, records: Sequence[TaskRecord]) -> list[LeasedTask]:
        """Add the requests to providers that earlier attempts left open; no attempt before this one can add any."""
        again = [record.id for record in records if record.attempt > 1 and record.provider_type != LOCAL]
        opened = await self._store.open_service_requests(again) if again else {}
        return [LeasedTask(record, opened.get(record.id, ())) for record in records]

    async def note_service_request(
        self, principal: Principal, session_id: UUID, ref: AttemptRef, request: ServiceRequestNote
    ) -> None:
        """Write a request to a provider down as it stands.

        Raises:
            MeshError: `CONFLICT` where the attempt is not the session's any more, `INVALID` where the identifier is
                another task's, or where what it takes to go on with the request is too much.
        """
        await self._owned(session_id, principal)
        if request.resume is not None and len(request.resume) > MAX_RESUME_BYTES:
            raise invalid("request.resume", f"takes more than {MAX_RESUME_BYTES} bytes", "too_long")
        verdict = await self._store.note_service_request(ref, session_id, request)
        if verdict is NoteVerdict.LOST:
            raise lease_lost()
        if verdict is NoteVerdict.ENDED:
            raise task_ended()
        if verdict is NoteVerdict.FOREIGN:
            raise invalid("request.id", "is another task's request", "foreign")

    async def _given_up(self, refs: list[AttemptRef]) -> GiveUp:
        return GiveUp(refs, list(await self._store.ended(refs)) if refs else [])

    async def _fail_uncarried(self, session: SessionRecord, records: Sequence[TaskRecord]) -> list[TaskRecord]:
        """Fail tasks that no answer carries, so that they hold nobody up; return the others."""
        carried: list[TaskRecord] = []
        for record in records:
            if record.bytes <= self._max_task_bytes:
                carried.append(record)
                continue
            text = f"The task takes {record.bytes} bytes, and {self._max_task_bytes} are the most that a worker is sent"
            _log.warning("task_not_carried", task_id=str(record.id), bytes=record.bytes)
            ended = await self._store.fail(
                AttemptRef(record.id, record.attempt),
                session.id,
                message=text,
                category=ErrorCategory.VALIDATION,
                retryable=False,
                used=DeviceUse(),
                policy=self._policy,
                weights=self._weights,
            )
            if ended.record is not None and not ended.repeated:
                self.returned([ended.record])
        return carried

    async def heartbeat(
        self,
        principal: Principal,
        session_id: UUID,
        held: Sequence[AttemptRef],
        *,
        draining: bool,
        load: WorkerLoad | None,
    ) -> GiveUp:
        """Extend a session, and note what its worker tells of itself; None where it tells nothing.

        Returns:
            Attempts that the worker has to end.

        Raises:
            MeshError: `NOT_FOUND` where the session has ended.
        """
        known = await self._store.heartbeat(
            session_id, principal.subject, held, draining=draining, load=load, ttl_seconds=self._ttl
        )
        if known is None:
            self._known.pop(session_id, None)
            raise session_not_found(session_id)
        await self._compare(session_id, held, known)
        leases = {item.ref for item in known}
        return await self._given_up([ref for ref in held if ref not in leases])

    async def report(
        self, principal: Principal, session_id: UUID, items: Sequence[worker_service_pb2.Progress]
    ) -> GiveUp:
        """Take progress.

        Returns:
            Attempts that the worker has to end.
        """
        await self._session(session_id, principal)
        refs = [from_ref(item.ref) for item in items]
        valid = await self._store.valid(session_id, refs)
        own = [(item, valid[ref]) for item, ref in zip(items, refs, strict=True) if ref in valid]
        self._progress.report(session_id, own)
        return await self._given_up([ref for ref in refs if ref not in valid])

    async def complete(
        self, principal: Principal, session_id: UUID, items: Sequence[worker_service_pb2.Completion]
    ) -> list[Exception | None]:
        """End attempts with their results, those that arrive together in one transaction.

        Returns:
            What became of each, in order: None where its task has the result; `INVALID` for a result that is never
            taken, `CONFLICT` where the attempt is not the session's any more, any other error where it was not decided.

        Raises:
            MeshError: `NOT_FOUND` where the session is another caller's.
        """
        await self._owned(session_id, principal)
        slots = known.slots if (known := self._known.get(session_id)) is not None else 1
        outcomes: list[Exception | None] = []
        waiting: list[tuple[int, asyncio.Future[AttemptEnd]]] = []
        for index, item in enumerate(items):
            ref = from_ref(item.ref)
            outcomes.append(results.misplaced(ref, item))
            if outcomes[index] is None:
                completion = CompletedAttempt(
                    ref,
                    session_id,
                    item.result.SerializeToString(),
                    tuple(each.path for each in item.objects),
                    DeviceUse(item.device_seconds, item.device, item.model),
                    tuple(clip_error(error) for error in item.errors),
                )
                waiting.append((index, self._completions.enqueue(completion)))
        ended = await asyncio.gather(*(future for _, future in waiting), return_exceptions=True)
        for (index, _), outcome in zip(waiting, ended, strict=True):
            if isinstance(outcome, BaseException):
                outcomes[index] = outcome if isinstance(outcome, Exception) else unavailable("The service is stopping")
            else:
                outcomes[index] = self._noted(outcome)
                if outcome.record is not None:
                    self._on_completed(outcome.record, items[index].device_seconds, slots)
                    self._freed([outcome.record])
        return outcomes

    def _freed(self, records: Sequence[TaskRecord]) -> None:
        """Tell that places at providers may be free: the end of a call may let another one begin."""
        for queue in {record.queue_name for record in records if gate_of(record.lane) is not None}:
            self._notifier.waiting(queue)

    @staticmethod
    def _noted(ended: AttemptEnd) -> MeshError | None:
        """Count a completion that was committed; an error for one that came too late."""
        record = ended.record
        if record is None:
            return None if ended.repeated else lease_lost()
        _ended(record.task_type, record.status).inc()
        if record.started_at is not None and record.completed_at is not None:
            trace = metrics.stored_exemplar(record.traceparent)
            _run_seconds(record.task_type).observe((record.completed_at - record.started_at).total_seconds(), trace)
        return None

    async def fail(
        self,
        principal: Principal,
        session_id: UUID,
        ref: AttemptRef,
        *,
        message: str,
        category: ErrorCategory,
        retryable: bool,
        retry_after: float | None = None,
        used: DeviceUse,
    ) -> bool:
        """End an attempt with an error.

        Returns:
            Whether the task was queued again.

        Raises:
            MeshError: `CONFLICT` where the attempt is not the session's any more.
        """
        await self._owned(session_id, principal)
        ended = await self._store.fail(
            ref,
            session_id,
            message=message or "The attempt failed",
            category=category,
            retryable=retryable,
            retry_after=retry_after,
            used=used,
            policy=self._policy,
            weights=self._weights,
        )
        if ended.record is None:
            if ended.repeated:
                return False
            raise lease_lost()
        if not ended.repeated:
            self.returned([ended.record])
        return ended.record.status == TaskStatus.PENDING

    async def release(self, principal: Principal, session_id: UUID, refs: Sequence[AttemptRef]) -> None:
        """Take attempts back that did not begin; those that ended already are passed over."""
        await self._owned(session_id, principal)
        if refs:
            self.returned(await self._store.release(session_id, refs, self._policy))

    async def close_session(self, principal: Principal, session_id: UUID) -> None:
        """End a session; what it holds goes back.

        Raises:
            MeshError: `NOT_FOUND` where it has ended.
        """
        returned = await self._store.close_session(session_id, principal.subject, self._policy)
        self._known.pop(session_id, None)
        if returned is None:
            raise session_not_found(session_id)
        self.returned(returned)

    async def _give_back(self, poll: Poll) -> None:
        """Take leases back whose poll went away before it could be answered."""
        refs = [AttemptRef(record.id, record.attempt) for record in await self._scheduler.abandon(poll)]
        if not refs:
            return
        try:
            self.returned(await self._store.release(poll.session.id, refs, self._policy))
        except MeshError as error:
            # The worker's heartbeats will not name them: the sweeper takes them back a little later.
            _log.warning("leases_left_to_sweeper", reason=error.reason, count=len(refs))

    def returned(self, records: Sequence[TaskRecord]) -> None:
        """Count and announce tasks whose attempts ended without a result."""
        if not records:
            return
        for record in records:
            _ATTEMPTS.labels(record.task_type, record.status).inc()
            if record.status == TaskStatus.FAILED:
                _ended(record.task_type, record.status).inc()
        self._notifier.committed()
        self._notifier.ended(records)
        for queue in {r.queue_name for r in records if r.status == TaskStatus.PENDING and r.not_before is None}:
            self._notifier.waiting(queue)
        self._freed([r for r in records if r.status != TaskStatus.PENDING or r.not_before is not None])

    async def _compare(self, session_id: UUID, held: Sequence[AttemptRef], known: Sequence[LeaseState]) -> None:
        """Find leases that a living worker does not name, and take back those it has not named for long."""
        named = set(held)
        missing = [item.ref for item in known if item.ref not in named]
        newly = [item.ref for item in known if item.ref not in named and not item.missing]
        found = [item.ref for item in known if item.ref in named and item.missing]
        if newly or found:
            await self._store.note_missing(session_id, newly, found)
        if missing:
            self.returned(await self._store.give_back_missing(session_id, self._acknowledge, self._ttl, self._policy))

    async def _commit(self, completions: Sequence[CompletedAttempt]) -> Sequence[AttemptEnd | Exception]:
        _commit_members.observe(len(completions))
        try:
            ended: Sequence[AttemptEnd | Exception] = await self._store.complete_many(completions, self._weights)
        except Exception as error:
            if len(completions) == 1:
                raise
            _log.info("completion_batch_split", cause=type(error).__name__)
            ended = [await self._complete_alone(completion) for completion in completions]
        self._notifier.committed()
        self._notifier.ended(one.record for one in ended if isinstance(one, AttemptEnd) and one.record is not None)
        return ended

    async def _complete_alone(self, completion: CompletedAttempt) -> AttemptEnd | Exception:
        try:
            return (await self._store.complete_many([completion], self._weights))[0]
        except Exception as error:
            return error

    async def _session(self, session_id: UUID, principal: Principal) -> SessionRecord:
        """Return an open session of this caller; it may have ended since, which every write checks again."""
        session = self._known.get(session_id) or await self._store.session(session_id)
        if session is None or session.subject != principal.subject:
            raise session_not_found(session_id)
        self._remember(session)
        return session

    async def _owned(self, session_id: UUID, principal: Principal) -> None:
        # A session may have ended since it was remembered. Its attempts are fenced by their rows.
        session = self._known.get(session_id) or await self._store.session(session_id)
        if session is not None and session.subject != principal.subject:
            raise session_not_found(session_id)
        if session is not None:
            self._remember(session)

    def _remember(self, session: SessionRecord) -> None:
        self._known[session.id] = session
        self._known.move_to_end(session.id)
        if len(self._known) > _REMEMBERED_SESSIONS:
            self._known.popitem(last=False)
