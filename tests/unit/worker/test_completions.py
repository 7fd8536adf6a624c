"""How completions share calls, and that each of them is answered by itself."""

import asyncio

import pytest
from atelier.tasks.v1.task_pb2 import TaskResult
from atelier.tasks.v1.worker_service_pb2 import (
    COMPLETION_VERDICT_LOST,
    COMPLETION_VERDICT_REFUSED,
    COMPLETION_VERDICT_TAKEN,
    COMPLETION_VERDICT_UNDECIDED,
    AttemptRef,
    CompleteManyRequest,
    CompleteManyResponse,
    Completion,
    CompletionOutcome,
    CompletionVerdict,
)

from meshkit import tracing
from meshkit.errors import ErrorKind, MeshError, unavailable
from meshkit.worker.completions import Completions

NEVER = 3600.0


class Service:
    """Answers calls once it is let go; remembers who came together."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.sessions: list[str] = []
        self.traces: list[object] = []
        self.verdicts: dict[str, CompletionVerdict.ValueType] = {}
        self.error: Exception | None = None
        self.invalid: set[str] = set()
        self.go = asyncio.Event()
        self.go.set()
        self._called = asyncio.Event()

    async def called(self, times: int) -> None:
        """Wait until it was called so often."""
        while len(self.calls) < times:
            self._called.clear()
            await self._called.wait()

    async def complete_many(self, request: CompleteManyRequest) -> CompleteManyResponse:
        jobs = [each.ref.job_id for each in request.completions]
        self.calls.append(jobs)
        self._called.set()
        self.sessions.append(request.session_id)
        self.traces.append(tracing.current())
        await self.go.wait()
        if self.error is not None:
            raise self.error
        if self.invalid.intersection(jobs):
            raise MeshError(ErrorKind.INVALID, "a member does not hold")
        return CompleteManyResponse(
            outcomes=[CompletionOutcome(verdict=self.verdicts.get(job, COMPLETION_VERDICT_TAKEN)) for job in jobs]
        )


async def turns() -> None:
    """Let all that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


def completion(job: str, payload: str = "") -> Completion:
    result = TaskResult()
    result.noop.payload = payload
    return Completion(ref=AttemptRef(job_id=job, attempt=1), result=result)


@pytest.fixture
def service() -> Service:
    return Service()


class Worker:
    """How many attempts a worker holds."""

    def __init__(self) -> None:
        self.held = 0


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def completions(service: Service, worker: Worker) -> Completions:
    return Completions(service.complete_many, held=lambda: worker.held, linger=NEVER)


async def sent(completions: Completions, *jobs: str, session: str = "s") -> list[object]:
    return await asyncio.gather(*(completions.send(session, completion(job)) for job in jobs), return_exceptions=True)


async def test_one_that_is_alone_is_sent_at_once(service: Service, completions: Completions) -> None:
    service.go.clear()
    task = asyncio.ensure_future(completions.send("s", completion("a")))
    for _ in range(3):
        await asyncio.sleep(0)
    assert service.calls == [["a"]]
    service.go.set()
    await task


async def test_one_waits_for_the_other_attempts_that_the_worker_holds(
    service: Service, completions: Completions, worker: Worker
) -> None:
    worker.held = 3
    first = asyncio.ensure_future(sent(completions, "a"))
    await turns()
    second = asyncio.ensure_future(sent(completions, "b"))
    await turns()
    assert service.calls == []
    await asyncio.gather(first, second, sent(completions, "c"))
    assert service.calls == [["a", "b", "c"]]


async def test_one_waits_no_longer_than_its_linger(service: Service, worker: Worker) -> None:
    worker.held = 3
    completions = Completions(service.complete_many, held=lambda: worker.held)
    async with asyncio.timeout(60):
        await sent(completions, "a", "b")
    assert service.calls == [["a", "b"]]


async def test_the_last_ones_wait_for_nobody(service: Service, completions: Completions, worker: Worker) -> None:
    worker.held = 2
    await sent(completions, "a", "b")
    assert service.calls == [["a", "b"]]


async def test_those_that_are_ready_together_share_a_call(service: Service, completions: Completions) -> None:
    assert await sent(completions, "a", "b", "c") == [None, None, None]
    assert service.calls == [["a", "b", "c"]]


async def test_what_becomes_ready_during_a_call_shares_the_next(service: Service, completions: Completions) -> None:
    service.go.clear()
    first = asyncio.ensure_future(sent(completions, "a"))
    await service.called(1)
    others = [asyncio.ensure_future(sent(completions, job)) for job in "bcd"]
    await turns()
    assert service.calls == [["a"]]
    service.go.set()
    await asyncio.gather(first, *others)
    assert service.calls == [["a"], ["b", "c", "d"]]


async def test_each_is_answered_by_itself(service: Service, completions: Completions) -> None:
    service.verdicts = {
        "lost": COMPLETION_VERDICT_LOST,
        "refused": COMPLETION_VERDICT_REFUSED,
        "later": COMPLETION_VERDICT_UNDECIDED,
    }
    kept, lost, refused, later = await sent(completions, "kept", "lost", "refused", "later")
    assert kept is None
    kinds = [error.kind for error in (lost, refused, later) if isinstance(error, MeshError)]
    assert kinds == [ErrorKind.CONFLICT, ErrorKind.INVALID, ErrorKind.UNAVAILABLE]


async def test_one_that_breaks_the_contract_does_not_take_others_with_it(
    service: Service, completions: Completions
) -> None:
    service.invalid = {"b"}
    a, b, c = await sent(completions, "a", "b", "c")
    assert (a, c) == (None, None)
    assert isinstance(b, MeshError)
    assert b.kind is ErrorKind.INVALID
    assert service.calls == [["a", "b", "c"], ["a"], ["b"], ["c"]]


async def test_a_failed_call_fails_all_that_it_carried(service: Service, completions: Completions) -> None:
    service.error = unavailable("away")
    assert await sent(completions, "a", "b") == [service.error, service.error]


async def test_a_fault_of_the_client_leaves_nobody_waiting(service: Service, completions: Completions) -> None:
    service.error = RuntimeError("broken")
    assert await sent(completions, "a", "b") == [service.error, service.error]
    service.error = None
    assert await sent(completions, "c") == [None]


async def test_a_call_is_of_one_session(service: Service, completions: Completions) -> None:
    await asyncio.gather(sent(completions, "a", session="old"), sent(completions, "b", session="new"))
    assert (service.calls, service.sessions) == ([["a"], ["b"]], ["old", "new"])


async def test_large_results_do_not_share_a_call(service: Service, completions: Completions) -> None:
    large = "x" * (800 << 10)
    await asyncio.gather(*(completions.send("s", completion(job, large)) for job in "ab"))
    assert service.calls == [["a"], ["b"]]


async def test_more_than_a_request_may_carry_are_split(service: Service, completions: Completions) -> None:
    assert await sent(completions, *(str(number) for number in range(300))) == [None] * 300
    assert [len(call) for call in service.calls] == [256, 44]


async def test_a_call_bears_the_trace_of_no_single_attempt(service: Service, completions: Completions) -> None:
    tracing.use(tracing.begin("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
    await completions.send("s", completion("a"))
    assert service.traces == [None]


async def test_closing_cancels_who_waits(service: Service, completions: Completions) -> None:
    service.go.clear()
    task = asyncio.ensure_future(sent(completions, "a"))
    await service.called(1)
    queued = asyncio.ensure_future(sent(completions, "b"))
    await turns()
    await completions.close()
    [a], [b] = await task, await queued
    assert isinstance(a, asyncio.CancelledError)
    assert isinstance(b, asyncio.CancelledError)
