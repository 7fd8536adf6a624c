import base64
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from services.tasks.webhooks.domain import (
    JITTER,
    LONGEST_WAIT,
    SCHEDULE,
    DeliveryFailure,
    DeliveryStatus,
    ReceiverAnswer,
    asked_wait,
    headers,
    judge,
    new_secret,
)

DOWN = ReceiverAnswer(None, "webhook_url could not be reached")


def test_attempts_go_on_for_about_three_days() -> None:
    waits = [judge(DOWN, tries, 0.0).wait for tries in range(len(SCHEDULE))]
    assert waits == list(SCHEDULE)
    assert timedelta(days=3) < sum(SCHEDULE, timedelta()) < timedelta(days=3.5)
    assert waits[0] == timedelta(seconds=5)


def test_a_wait_varies_by_the_jitter_and_no_more() -> None:
    for tries, wait in enumerate(SCHEDULE):
        assert judge(DOWN, tries, -1.0).wait == wait * (1 - JITTER)
        assert judge(DOWN, tries, 1.0).wait == wait * (1 + JITTER)


def test_the_attempt_after_the_last_wait_is_the_last() -> None:
    verdict = judge(DOWN, len(SCHEDULE), 0.0)
    assert (verdict.status, verdict.failure, verdict.wait) == (DeliveryStatus.FAILED, DeliveryFailure.EXHAUSTED, None)


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_a_2xx_ends_a_delivery(status: int) -> None:
    verdict = judge(ReceiverAnswer(status, None), 3, 0.0)
    assert (verdict.status, verdict.wait) == (DeliveryStatus.DELIVERED, None)


@pytest.mark.parametrize("status", [301, 302, 400, 404, 429, 500, 503])
def test_every_other_answer_is_tried_again(status: int) -> None:
    assert judge(ReceiverAnswer(status, "no"), 0, 0.0).status is DeliveryStatus.PENDING


NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [
        (429, "120", 120),
        (503, " 7 ", 7),
        (503, "Sun, 22 Nov 2026 13:00:00 GMT", 3600),
        (503, "Sunday, 22-Nov-26 12:00:30 GMT", 30),
        (503, "Sun Nov 22 12:00:30 2026", 30),
        (429, "Sun, 22 Nov 2026 11:00:00 GMT", 0),
        (429, "999999999999999999999999999", LONGEST_WAIT.total_seconds()),
        (429, "9" * 5000, LONGEST_WAIT.total_seconds()),
        (429, "Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_WAIT.total_seconds()),
        (429, "0", 0),
        (429, "-5", 0),
        (429, "1.5", 0),
        (429, "\u0663", 0),
        (429, "soon", 0),
        (429, "", 0),
        (500, "120", 0),
        (200, "120", 0),
    ],
)
def test_what_a_busy_receiver_asks_for_is_read_within_bounds(status: int, header: str, seconds: float) -> None:
    assert asked_wait(status, header, NOW) == timedelta(seconds=seconds)


def test_a_receiver_that_asks_for_more_time_gets_it_and_one_that_asks_for_less_does_not() -> None:
    def wait(asked: timedelta, spread: float) -> timedelta:
        found = judge(ReceiverAnswer(429, "no", asked_wait=asked), 0, spread).wait
        assert found is not None
        return found

    hour = timedelta(hours=1)
    for spread in (-1.0, 0.0, 1.0):
        assert hour <= wait(hour, spread) <= hour * (1 + JITTER)
        assert wait(timedelta(seconds=1), spread) == SCHEDULE[0] * (1 + JITTER * spread)
        assert wait(LONGEST_WAIT, spread) == LONGEST_WAIT
    assert judge(ReceiverAnswer(429, "no", asked_wait=hour), len(SCHEDULE), 0.0).failure is DeliveryFailure.EXHAUSTED


def test_410_and_a_refused_address_end_a_delivery_at_once() -> None:
    assert judge(ReceiverAnswer(410, "gone"), 0, 0.0).failure is DeliveryFailure.GONE
    assert judge(ReceiverAnswer(None, "private", refused=True), 0, 0.0).failure is DeliveryFailure.REFUSED


def test_a_secret_is_long_and_of_the_specified_form() -> None:
    key = new_secret()
    assert key.startswith("whsec_")
    assert 24 <= len(base64.b64decode(key.removeprefix("whsec_"), validate=True)) <= 64
    assert key != new_secret()


def test_a_receiver_with_either_secret_verifies_a_request_while_both_sign() -> None:
    new, former = new_secret(), new_secret()
    body = '{"event_type":"task_created","task":"größer"}'.encode()
    sent = headers(uuid4(), datetime.now(UTC), body, [new, former])
    for key in (new, former):
        assert Webhook(key).verify(body, sent)["event_type"] == "task_created"
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(body, sent)
    with pytest.raises(WebhookVerificationError):
        Webhook(new).verify(body + b" ", sent)
    with pytest.raises(WebhookVerificationError):
        Webhook(new).verify(body, sent | {"webhook-id": str(uuid4())})
