"""How a worker ends attempts: with a result, with an error, or handed back.

An end is repeated until the service has answered, or until the attempt is known to be another worker's. The number of
the attempt is its fencing token: an end that comes late is refused, and one that comes twice changes nothing.
"""

from __future__ import annotations

import contextlib
import enum
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from atelier.inference.v1.child_pb2 import ChildDone
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_INTERNAL, ErrorCategory
from atelier.tasks.v1.task_pb2 import TaskResult
from atelier.tasks.v1.worker_service_pb2 import (
    AttemptRef,
    CompleteManyRequest,
    CompleteManyResponse,
    Completion,
    FailRequest,
    ReleaseRequest,
    ResultObject,
)

from meshkit.errors import TRANSIENT, ErrorKind, MeshError
from meshkit.logging import get_logger
from meshkit.moments import duration_of
from meshkit.worker.completions import Completions
from meshkit.worker.held import HeldLease, HeldLeases
from meshkit.worker.pacing import Pauses
from meshkit.worker.pairs import pair_of
from meshkit.worker.session import WorkerCalls, WorkerSession, call

_log = get_logger(__name__)

_END_SECONDS = 10.0
_USE_SECONDS = 5.0


class ReportOutcome(enum.Enum):
    """What became of a result that was reported.

    TAKEN: it is the task's. LOST: it is not, and never will be. UNKNOWN: the service did not say.
    """

    TAKEN = enum.auto()
    LOST = enum.auto()
    UNKNOWN = enum.auto()


class AttemptEnds:
    """Ends attempts.

    Args:
        calls: The service.
        held: The attempts.
        pauses: Waits between tries.
    """

    def __init__(self, calls: WorkerCalls, held: HeldLeases, pauses: Pauses) -> None:
        self._calls = calls
        self._held = held
        self._pauses = pauses
        self._completions = Completions(self._complete_many, held=lambda: len(held))
        self.completed: Counter[str] = Counter()  # attempts whose results were taken, by type

    async def close(self) -> None:
        """Give up completions on their way."""
        await self._completions.close()

    async def complete(
        self,
        held: HeldLease,
        result: TaskResult,
        objects: Iterable[ResultObject],
        done: ChildDone,
    ) -> ReportOutcome:
        """End an attempt with its result; what is done tells what went wrong with parts of it, and what it used.

        Raises:
            MeshError: the service does not take this result, now or ever.
        """
        completion = Completion(ref=held.ref, result=result, objects=objects, errors=done.output.errors, **_used(done))
        outcome = await self._end(held, lambda: self._completions.send(held.session.id, completion))
        if outcome is ReportOutcome.TAKEN:
            self.completed[pair_of(held.lease.spec, held.lease.task, held.lease.kind).label] += 1
        return outcome

    async def fail(
        self,
        held: HeldLease,
        message: str,
        category: ErrorCategory.ValueType,
        *,
        retryable: bool,
        retry_after: float | None = None,
        done: ChildDone | None = None,
    ) -> bool:
        """End an attempt with an error; returns False where the service has not taken it."""
        request = FailRequest(
            session_id=held.session.id,
            ref=held.ref,
            message=message[:4096],
            category=category,
            retryable=retryable,
            **_used(done),
            retry_after=None if retry_after is None else duration_of(retry_after),
        )
        return (
            await self._end(held, lambda: call(self._calls.Fail, request, timeout=_END_SECONDS)) is ReportOutcome.TAKEN
        )

    async def tell_use(self, held: HeldLease, done: ChildDone) -> None:
        """Tell what an attempt has used that is not the session's any more; once, for nothing depends on it."""
        request = FailRequest(
            session_id=held.session.id,
            ref=held.ref,
            message="The worker gave the attempt up.",
            category=ERROR_CATEGORY_INTERNAL,
            retryable=True,
            **_used(done),
        )
        with contextlib.suppress(MeshError):
            await call(self._calls.Fail, request, timeout=_USE_SECONDS)

    async def release(self, attempts: Sequence[HeldLease]) -> None:
        """Hand attempts back that did not begin, or confirm that cancelled ones have ended."""
        by_session: dict[WorkerSession, list[HeldLease]] = {}
        for held in attempts:
            by_session.setdefault(held.session, []).append(held)
        for session, group in by_session.items():
            await self._release(session, [held.ref for held in group])
            for held in group:
                self._held.drop(held)

    async def _release(self, session: WorkerSession, refs: Sequence[AttemptRef]) -> None:
        request = ReleaseRequest(session_id=session.id, refs=refs)
        failures = 0
        while not session.lost.is_set():
            try:
                await call(self._calls.Release, request, timeout=5.0)
            except MeshError as error:
                if error.kind not in TRANSIENT:
                    return
                failures += 1
                await self._pauses.after(failures, session.lost)
            else:
                return

    async def _end(self, held: HeldLease, send: Callable[[], Awaitable[object]]) -> ReportOutcome:
        failures = 0
        outcome = ReportOutcome.LOST  # as long as nothing was sent
        while True:
            # The lease may have been lost after a request that got no answer. Then the request is sent once more: the
            # answer says whether the first one was taken.
            last = held.lost is not None or held.session.lost.is_set()
            if last and outcome is ReportOutcome.LOST:
                break
            outcome = ReportOutcome.UNKNOWN
            try:
                await send()
            except MeshError as error:
                if error.kind is ErrorKind.INVALID:
                    raise
                if error.kind not in TRANSIENT:
                    _log.warning(
                        "attempt_refused", job_id=held.lease.job_id, attempt=held.lease.attempt, why=error.reason
                    )
                    self._held.drop(held)
                    return ReportOutcome.LOST
                if last:
                    break
                failures += 1
                await self._pauses.after(failures, held.session.lost)
            else:
                self._held.drop(held)
                return ReportOutcome.TAKEN
        # The task was cancelled while its result was on its way: the service counts the slot as busy until this.
        await self.release([held])
        return outcome

    async def _complete_many(self, request: CompleteManyRequest) -> CompleteManyResponse:
        return await call(self._calls.CompleteMany, request, timeout=_END_SECONDS)


def _used(done: ChildDone | None) -> dict[str, Any]:
    if done is None:
        return {}
    # The handler names first what does most of the work.
    model = done.loans[0].model if done.loans else ""
    return {"device_seconds": done.device_seconds, "device": done.device, "model": model}
