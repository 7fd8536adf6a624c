"""The child's side of a batch: find the handler, lend it what it needs, tell what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from atelier.inference.v1.child_pb2 import ChildDone, ChildLoan, ChildResident
from atelier.inference.v1.inference_service_pb2 import ResidentModel
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_INTERNAL, ERROR_CATEGORY_RESOURCE
from atelier.tasks.v1.phase_pb2 import TASK_PHASE_LOADING_MODEL, TASK_PHASE_RUNNING

from meshkit import tracing
from meshkit.logging import get_logger
from meshkit.worker.child_spans import Stopwatch
from meshkit.worker.handlers import Lender, Need, Output, TaskFailed, TaskHandler
from meshkit.worker.job_context import JobContext
from meshkit.worker.outcomes import done_of
from meshkit.worker.pairs import Pair, pair_of

_log = get_logger(__name__)


class _BatchNotes:
    """What the parent is told of a batch besides its outcomes: the models it was lent, its device, what took how long.

    Args:
        batch: The batch.
        device: Its device.
    """

    def __init__(self, batch: Sequence[JobContext], device: str) -> None:
        self._device = device
        self._share: float | None = None  # seconds of the handler for each job, once it was called
        self._name = pair_of(batch[0].spec, batch[0].task, batch[0].kind).label
        self._loans: list[ChildLoan] = []
        self._watches = [Stopwatch(context.traceparent) if context.traced else None for context in batch]
        self._traced = any(self._watches)

    def loan(self, model: str, resident: bool) -> None:  # noqa: FBT001 -- a lender calls it
        """Note a model that the batch was lent."""
        self._loans.append(ChildLoan(model=model, resident=resident))

    def part(self, name: str, began_ns: int) -> None:
        """Note a part of the work that ends now."""
        if self._traced:
            ended_ns = time.time_ns()
            for watch in self._watches:
                if watch is not None:
                    watch.part(name, began_ns, ended_ns)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Note the call of the handler, however it ends."""
        began_ns, began = time.time_ns(), time.perf_counter()
        try:
            yield
        finally:
            self._share = (time.perf_counter() - began) / len(self._watches)
            self.part("run", began_ns)

    def add_to(self, ends: Sequence[ChildDone]) -> None:
        """Tell it with the ends of the batch's jobs."""
        for done, watch in zip(ends, self._watches, strict=True):
            done.loans.extend(self._loans)
            if self._share is not None:
                done.device = self._device
                if done.WhichOneof("outcome") != "output":  # an output tells it itself
                    done.device_seconds = self._share
            if watch is not None:
                done.spans.extend(watch.ended(f"child {self._name}"))


class BatchRunner:
    """Executes batches: finds the handler, lends it the models it needs, turns whatever comes of it into outcomes.

    Args:
        handlers: One handler a pair.
        lender: Keeps the models; None where no handler needs any.
        explain: Turns an exception of the models' library into a `TaskFailed`; returns any other as it is.
        review: Looks at each result before it leaves; raises where it must not.
        device: Device of handlers where there is no lender.
    """

    def __init__(
        self,
        handlers: Mapping[Pair, TaskHandler],
        lender: Lender | None = None,
        explain: Callable[[Exception], Exception] = lambda error: error,
        review: Callable[[JobContext, Output], Output] = lambda _, output: output,
        device: str = "cpu",
    ) -> None:
        self._handlers = handlers
        self._lender = lender
        self._explain = explain
        self._review = review
        self._device = device if lender is None else lender.device

    def execute(self, batch: Sequence[JobContext]) -> list[ChildDone]:
        """Run one batch of one pair; one outcome a job."""
        first = batch[0]
        handler = self._handlers.get(pair_of(first.spec, first.task, first.kind))
        if handler is None:
            missing = TaskFailed("This worker does not execute the type.", ERROR_CATEGORY_INTERNAL, retryable=False)
            return [done_of(missing) for _ in batch]
        told = _BatchNotes(batch, self._device)
        with tracing.activated(tracing.begin(first.traceparent)):
            outcomes = self._run(handler, batch, told)
            ends = [
                self._done(self._reviewed(context, outcome)) for context, outcome in zip(batch, outcomes, strict=True)
            ]
        told.add_to(ends)
        return ends

    def resident(self) -> ChildResident | None:
        """Return what is in memory, or None where nothing ever is."""
        if self._lender is None:
            return None
        return ChildResident(
            models=[
                ResidentModel(
                    name=model.name,
                    family=model.family,
                    bytes=model.bytes,
                    loras=model.loras,
                    pinned=model.pins > 0,
                )
                for model in self._lender.resident()
            ]
        )

    def _run(self, handler: TaskHandler, batch: Sequence[JobContext], told: _BatchNotes) -> list[Output | Exception]:
        """Run the members whose needs are known; the others fail by themselves."""
        failures: dict[int, Exception] = {}
        needs: list[Need] = []
        for index, context in enumerate(batch):
            try:
                needs += handler.needs(context.spec, context.task)
            except Exception as error:
                failures[index] = error
        able = [context for index, context in enumerate(batch) if index not in failures]
        outcomes = iter(self._lent(handler, able, needs, told))
        return [failures[index] if index in failures else next(outcomes) for index in range(len(batch))]

    def _lent(
        self, handler: TaskHandler, batch: Sequence[JobContext], needs: Iterable[Need], told: _BatchNotes
    ) -> Sequence[Output | Exception]:
        if not batch:
            return []
        try:
            wanted = tuple(dict.fromkeys(needs))
            if wanted:
                for context in batch:
                    context.begins(TASK_PHASE_LOADING_MODEL)
            began = time.time_ns()
            with self._lend(wanted, told) as lent:
                if wanted:
                    for context in batch:
                        context.begins(TASK_PHASE_RUNNING)
                    told.part("lend models", began)
                with told.running():
                    outcomes = handler.run(batch, lent)
            if len(outcomes) != len(batch):
                raise RuntimeError(f"{len(outcomes)} outcomes for {len(batch)} tasks")
        except Exception as error:  # a handler's fault ends its batch, never the process
            return [error] * len(batch)
        return outcomes

    def _reviewed(self, context: JobContext, outcome: Output | Exception) -> Output | Exception:
        """Review a result once its batch has given its models back: the review may need one of its own."""
        if not isinstance(outcome, Output):
            return outcome
        try:
            return self._review(context, outcome)
        except Exception as error:  # as a handler's fault
            return error

    def _lend(self, needs: Sequence[Need], told: _BatchNotes) -> AbstractContextManager[Mapping[str, Any]]:
        if not needs:
            return nullcontext({})
        if self._lender is None:
            raise RuntimeError("a handler needs a model and names no families")
        return self._lender.lend(needs, told.loan)

    def _done(self, outcome: Output | Exception) -> ChildDone:
        if isinstance(outcome, Output):
            return done_of(outcome)
        error = self._explain(outcome)
        if _out_of_memory(error):
            _log.warning("out_of_memory", exc_info=error)
            if self._lender is not None:
                self._lender.free()
            if not isinstance(error, TaskFailed):
                error = TaskFailed("The device ran out of memory.", ERROR_CATEGORY_RESOURCE, retryable=True)
        return done_of(error)


def _out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception, or one that caused it, says that memory ran out.

    torch's class is told by its name, because it is not imported here.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":
            return True
        cause = cause.__cause__
    return False
