"""Requests that cost money, at a provider that is a script: what is noted when, and how often it is sent."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from atelier.tasks.v1.enums_pb2 import (
    ERROR_CATEGORY_CANCELLED,
    ERROR_CATEGORY_PROVIDER,
    ERROR_CATEGORY_RESOURCE,
    ERROR_CATEGORY_TIMEOUT,
    PROVIDER_TYPE_FAL_STANDARD,
)
from atelier.tasks.v1.phase_pb2 import TASK_PHASE_FETCHING, TASK_PHASE_PROVIDER_QUEUED, TASK_PHASE_RUNNING
from atelier.tasks.v1.service_requests_pb2 import (
    SERVICE_REQUEST_EFFECT_FAILURE,
    SERVICE_REQUEST_EFFECT_IGNORED,
    SERVICE_REQUEST_EFFECT_SUCCESS,
    SERVICE_REQUEST_STATE_ACCEPTED,
    SERVICE_REQUEST_STATE_SENDING,
    ServiceRequest,
)
from prometheus_client import REGISTRY

from meshkit.worker.handlers import TaskFailed
from services.inference.providers import paid
from services.inference.providers.errors import Fault, ProviderError
from services.inference.providers.paid import AcceptedRequest, Order, Pacing, ProviderAnswer, Standing, answered, queued
from tests.providers.attempt import FakeAttempt

ORDER = Order(PROVIDER_TYPE_FAL_STANDARD, "fal", "fal-ai/x", "submit", 60.0, Pacing(0.001, 0.002))
DONE = Standing(finished=True)


def measured(outcome: str) -> float:
    """How many requests to the provider are in the histogram."""
    labels = {"provider": "FAL_STANDARD", "outcome": outcome}
    return REGISTRY.get_sample_value("atelier_provider_request_seconds_count", labels) or 0.0


class Script:
    """A provider that answers `looks` one by one, the last one for ever."""

    def __init__(self, *looks: Standing | ProviderError) -> None:
        self.looks = list(looks)
        self.submits = 0
        self.asked = asyncio.Event()
        self.called_off: list[str] = []
        self.stops = True
        self.submitting: Callable[[], Awaitable[None]] | None = None
        self.fetches: list[ProviderError] = []

    async def submit(self) -> AcceptedRequest:
        self.submits += 1
        self.asked.set()
        if self.submitting is not None:
            await self.submitting()
        return AcceptedRequest("r-1", {"status_url": "http://fal/r-1"}, 200)

    async def look(self, request: ServiceRequest) -> Standing:
        assert request.service_task_id == "r-1"
        assert request.resume["status_url"] == "http://fal/r-1"
        found = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(found, ProviderError):
            raise found
        return found

    async def fetch(self, request: ServiceRequest) -> ProviderAnswer[str]:
        if self.fetches:
            raise self.fetches.pop(0)
        return ProviderAnswer("picture", 200, 0.05, "USD")

    async def call_off(self, request: ServiceRequest) -> bool:
        self.called_off.append(request.service_task_id)
        return self.stops


async def kept(answer: ProviderAnswer[str]) -> str:
    return answer.value.upper()


@pytest.fixture
def attempt(tmp_path: Path) -> FakeAttempt:
    return FakeAttempt(tmp_path)


def only(attempt: FakeAttempt) -> ServiceRequest:
    [row] = attempt.rows.values()
    return row


async def test_a_request_is_noted_before_it_is_sent_and_before_it_is_waited_for(attempt: FakeAttempt) -> None:
    provider = Script(Standing(queued=True, position=3), Standing(share=0.5), DONE)
    seen: list[list[str]] = []

    async def submitting() -> None:
        seen.append(list(attempt.states))

    provider.submitting = submitting
    assert await queued(attempt, provider, ORDER, kept) == "PICTURE"
    assert seen == [["SENDING"]]
    assert attempt.states == ["SENDING", "ACCEPTED", "DONE"]
    row = only(attempt)
    assert (row.target, row.operation, row.service_task_id) == ("fal-ai/x", "submit", "r-1")
    assert (row.effect, row.cost, row.currency) == (SERVICE_REQUEST_EFFECT_SUCCESS, 0.05, "USD")
    assert attempt.phases == [(TASK_PHASE_PROVIDER_QUEUED, 3), (TASK_PHASE_RUNNING, None), (TASK_PHASE_FETCHING, None)]
    assert attempt.steps == [0.5, 0.9]


async def test_another_attempt_goes_on_with_what_was_accepted(attempt: FakeAttempt) -> None:
    provider = Script(Standing(queued=True))
    running = asyncio.create_task(queued(attempt, provider, ORDER, kept))
    await attempt.until("ACCEPTED")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert provider.called_off == []
    provider.looks = [DONE]
    assert await queued(attempt.again(), provider, ORDER, kept) == "PICTURE"
    assert provider.submits == 1


async def test_what_was_sent_and_not_answered_is_not_sent_again(attempt: FakeAttempt) -> None:
    provider = Script(DONE)
    provider.submitting = asyncio.Event().wait  # type: ignore[assignment] # it never returns
    running = asyncio.create_task(queued(attempt, provider, ORDER, kept))
    await provider.asked.wait()
    again = attempt.again()  # the worker is killed here
    with pytest.raises(TaskFailed) as failed:
        await queued(again, provider, ORDER, kept)
    assert (failed.value.category, failed.value.retryable) == (ERROR_CATEGORY_PROVIDER, False)
    assert again.states == ["UNKNOWN"]
    assert provider.submits == 1
    running.cancel()
    await asyncio.wait([running])


async def test_a_request_of_another_operation_is_another_request(attempt: FakeAttempt) -> None:
    other = ServiceRequest(
        id="a", provider_type=PROVIDER_TYPE_FAL_STANDARD, operation="image[1]", state=SERVICE_REQUEST_STATE_SENDING
    )
    attempt.rows[other.id] = other
    assert await queued(attempt, provider := Script(DONE), ORDER, kept) == "PICTURE"
    assert provider.submits == 1


@pytest.mark.parametrize(
    ("fault", "state", "retryable"),
    [
        (Fault.UNSENT, "FAILED", True),
        (Fault.LIMITED, "FAILED", True),
        (Fault.DENIED, "FAILED", False),
        (Fault.UNKNOWN, "UNKNOWN", False),
    ],
)
async def test_a_failed_send_ends_the_request(attempt: FakeAttempt, fault: Fault, state: str, retryable: bool) -> None:
    provider = Script(DONE)

    async def submitting() -> None:
        raise ProviderError(fault, "fal", retry_after=3.0, http_status=429)

    provider.submitting = submitting
    before = measured(fault.value)
    with pytest.raises(TaskFailed) as failed:
        await queued(attempt, provider, ORDER, kept)
    assert measured(fault.value) == before + 1
    assert (failed.value.retryable, failed.value.retry_after) == (retryable, 3.0)
    assert attempt.states == ["SENDING", state]
    assert only(attempt).retry_after.seconds == 3
    assert only(attempt).http_status == 429


async def test_a_provider_that_cannot_be_asked_just_now_goes_on(attempt: FakeAttempt) -> None:
    passing = [ProviderError(fault, "fal") for fault in (Fault.BROKEN, Fault.UNSENT, Fault.LIMITED)]
    assert await queued(attempt, provider := Script(*passing, DONE), ORDER, kept) == "PICTURE"
    assert provider.submits == 1


async def test_a_job_that_fails_ends_the_request(attempt: FakeAttempt) -> None:
    looks = [Standing(queued=True)] * 9 + [ProviderError(Fault.FAILED, "fal", "it broke")]
    with pytest.raises(TaskFailed, match="It says: it broke") as failed:
        await queued(attempt, Script(*looks), ORDER, kept)
    assert not failed.value.retryable
    assert attempt.states == ["SENDING", "ACCEPTED", "FAILED"]
    assert only(attempt).effect == SERVICE_REQUEST_EFFECT_FAILURE


async def test_a_result_that_is_not_delivered_now_is_fetched_by_the_next_attempt(attempt: FakeAttempt) -> None:
    provider = Script(DONE)
    provider.fetches = [ProviderError(Fault.BROKEN, "fal")]
    with pytest.raises(TaskFailed) as failed:
        await queued(attempt, provider, ORDER, kept)
    assert failed.value.retryable
    assert attempt.states == ["SENDING", "ACCEPTED"]
    assert await queued(attempt.again(), provider, ORDER, kept) == "PICTURE"
    assert provider.submits == 1


async def test_a_result_that_is_none_ends_the_request(attempt: FakeAttempt) -> None:
    async def refuses(_: ProviderAnswer[str]) -> str:
        raise ProviderError(Fault.EMPTY, "fal")

    with pytest.raises(TaskFailed) as failed:
        await queued(attempt, Script(DONE), ORDER, refuses)
    assert failed.value.retryable
    assert attempt.states == ["SENDING", "ACCEPTED", "FAILED"]


@pytest.mark.parametrize("stops", [True, False])
async def test_one_that_never_ends_is_called_off(attempt: FakeAttempt, stops: bool) -> None:
    provider = Script(Standing())
    provider.stops = stops
    hasty = Order(PROVIDER_TYPE_FAL_STANDARD, "fal", "", "submit", 0.05, Pacing(0.001, 0.002))
    with pytest.raises(TaskFailed) as failed:
        await queued(attempt, provider, hasty, kept)
    # Where the provider cannot stop it, it may still be paid: another attempt would be a second time.
    assert (failed.value.category, failed.value.retryable) == (ERROR_CATEGORY_TIMEOUT, stops)
    assert provider.called_off == ["r-1"]
    assert attempt.states == ["SENDING", "ACCEPTED", "FAILED"]


async def test_one_that_has_ended_when_it_is_called_off_is_taken(attempt: FakeAttempt) -> None:
    provider = Script(Standing())

    async def too_late(request: ServiceRequest) -> bool:
        provider.looks = [DONE]
        return False

    provider.call_off = too_late  # type: ignore[method-assign] # a script
    hasty = Order(PROVIDER_TYPE_FAL_STANDARD, "fal", "", "submit", 0.02, Pacing(0.001, 0.002))
    assert await queued(attempt, provider, hasty, kept) == "PICTURE"


async def test_the_limit_counts_from_when_it_was_sent(attempt: FakeAttempt) -> None:
    row = ServiceRequest(
        id="a",
        provider_type=PROVIDER_TYPE_FAL_STANDARD,
        operation="submit",
        state=SERVICE_REQUEST_STATE_ACCEPTED,
        service_task_id="r-1",
    )
    row.resume["status_url"] = "http://fal/r-1"
    row.sent_at.GetCurrentTime()
    row.sent_at.seconds -= 61
    attempt.rows[row.id] = row
    with pytest.raises(TaskFailed) as failed:
        await queued(attempt, Script(Standing()), ORDER, kept)
    assert failed.value.category == ERROR_CATEGORY_TIMEOUT


async def test_a_cancelled_task_is_called_off_at_its_provider(attempt: FakeAttempt) -> None:
    provider = Script(Standing(queued=True))
    running = asyncio.create_task(queued(attempt, provider, ORDER, kept))
    await attempt.until("ACCEPTED")
    attempt.called_off = True
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert provider.called_off == ["r-1"]
    row = only(attempt)
    assert (row.category, row.effect) == (ERROR_CATEGORY_CANCELLED, SERVICE_REQUEST_EFFECT_IGNORED)


@pytest.mark.parametrize("called_off", [True, False])
async def test_a_cancel_while_it_is_sent_waits_for_its_name(attempt: FakeAttempt, called_off: bool) -> None:
    provider, sent = Script(Standing()), asyncio.Event()
    provider.submitting = sent.wait  # type: ignore[assignment] # what it returns is not read
    running = asyncio.create_task(queued(attempt, provider, ORDER, kept))
    await provider.asked.wait()
    attempt.called_off = called_off
    running.cancel()
    await asyncio.sleep(0)
    sent.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert "ACCEPTED" in attempt.states
    assert provider.called_off == (["r-1"] if called_off else [])


async def test_an_attempt_that_is_lost_sends_nothing(attempt: FakeAttempt) -> None:
    attempt.lost = True
    provider = Script(DONE)
    with pytest.raises(asyncio.CancelledError):
        await queued(attempt, provider, ORDER, kept)
    assert provider.submits == 0


async def test_an_answer_is_noted_before_and_after(attempt: FakeAttempt) -> None:
    async def call() -> ProviderAnswer[str]:
        assert attempt.states == ["SENDING"]
        return ProviderAnswer("picture", 200, service_task_id="msg-1")

    before = measured("done")
    assert await answered(attempt, call, ORDER, kept) == "PICTURE"
    assert attempt.states == ["SENDING", "DONE"]
    assert only(attempt).service_task_id == "msg-1"
    assert measured("done") == before + 1


@pytest.mark.parametrize(("failures", "kept_in_the_end"), [(2, True), (99, False)])
async def test_an_answer_waits_for_room_in_its_worker(
    attempt: FakeAttempt, monkeypatch: pytest.MonkeyPatch, failures: int, *, kept_in_the_end: bool
) -> None:
    monkeypatch.setattr(paid, "_FINISH_SECONDS", 0.001)
    calls, left = 0, failures

    async def call() -> ProviderAnswer[str]:
        nonlocal calls
        calls += 1
        return ProviderAnswer("picture", 200)

    async def crowded(answer: ProviderAnswer[str]) -> str:
        nonlocal left
        left -= 1
        if left >= 0:
            raise TaskFailed("no room", ERROR_CATEGORY_RESOURCE, retryable=True)
        return await kept(answer)

    if kept_in_the_end:
        assert await answered(attempt, call, ORDER, crowded) == "PICTURE"
    else:
        with pytest.raises(TaskFailed) as failed:
            await answered(attempt, call, ORDER, crowded)
        assert (failed.value.category, failed.value.retryable) == (ERROR_CATEGORY_RESOURCE, False)
    assert (attempt.states, calls) == (["SENDING", "DONE"], 1)
    assert only(attempt).effect == SERVICE_REQUEST_EFFECT_SUCCESS


async def test_an_answer_that_went_with_its_worker_is_not_asked_for_again(attempt: FakeAttempt) -> None:
    calls, asked = 0, asyncio.Event()

    async def call() -> ProviderAnswer[str]:
        nonlocal calls
        calls += 1
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    running = asyncio.create_task(answered(attempt, call, ORDER, kept))
    await asked.wait()
    again = attempt.again()
    with pytest.raises(TaskFailed) as failed:
        await answered(again, call, ORDER, kept)
    assert (failed.value.category, failed.value.retryable) == (ERROR_CATEGORY_PROVIDER, False)
    assert (again.states, calls) == (["UNKNOWN"], 1)
    running.cancel()
    await asyncio.wait([running])


async def test_an_answer_that_does_not_come_ends_at_the_limit(attempt: FakeAttempt) -> None:
    async def call() -> ProviderAnswer[str]:
        await asyncio.Event().wait()
        raise AssertionError

    hasty = Order(PROVIDER_TYPE_FAL_STANDARD, "fal", "", "submit", 0.02)
    with pytest.raises(TaskFailed) as failed:
        await answered(attempt, call, hasty, kept)
    assert (failed.value.category, failed.value.retryable) == (ERROR_CATEGORY_TIMEOUT, False)
    assert attempt.states == ["SENDING", "FAILED"]


async def test_a_result_that_was_lost_with_its_worker_is_fetched_again(attempt: FakeAttempt) -> None:
    provider = Script(DONE)
    for _ in range(2):
        assert await queued(attempt, provider, ORDER, kept) == "PICTURE"
        attempt = attempt.again()  # the worker dies before the task has its result
    assert provider.submits == 1


async def test_an_answer_that_was_lost_with_its_worker_is_not_asked_for_again(attempt: FakeAttempt) -> None:
    async def call() -> ProviderAnswer[str]:
        return ProviderAnswer("picture", 200)

    assert await answered(attempt, call, ORDER, kept) == "PICTURE"
    with pytest.raises(TaskFailed) as failed:
        await answered(attempt.again(), call, ORDER, kept)
    assert (failed.value.category, failed.value.retryable) == (ERROR_CATEGORY_PROVIDER, False)
