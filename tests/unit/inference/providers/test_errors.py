import pytest
from atelier.tasks.v1.enums_pb2 import ErrorCategory
from atelier.tasks.v1.service_requests_pb2 import ServiceRequestEffect

from services.inference.providers.errors import RULES, Fault, ProviderError, fault_of_status
from services.inference.providers.http import ProviderReply

TABLE = {
    Fault.INVALID: ("VALIDATION", False, "IGNORED"),
    Fault.DENIED: ("PROVIDER", False, "FATAL"),
    Fault.LIMITED: ("RATE_LIMIT", True, "IGNORED"),
    Fault.REFUSED: ("CONTENT_POLICY", False, "IGNORED"),
    Fault.EMPTY: ("PROVIDER", True, "FAILURE"),
    Fault.UNSENT: ("PROVIDER", True, "FAILURE"),
    Fault.BROKEN: ("PROVIDER", True, "FAILURE"),
    Fault.UNKNOWN: ("PROVIDER", False, "FAILURE"),
    Fault.FAILED: ("PROVIDER", False, "FAILURE"),
    Fault.LATE: ("TIMEOUT", True, "FAILURE"),
    Fault.CALLED_OFF: ("CANCELLED", False, "IGNORED"),
}


def test_every_fault_has_its_row() -> None:
    found = {
        fault: (
            ErrorCategory.Name(rule.category).removeprefix("ERROR_CATEGORY_"),
            rule.retryable,
            ServiceRequestEffect.Name(rule.effect).removeprefix("SERVICE_REQUEST_EFFECT_"),
        )
        for fault, rule in RULES.items()
    }
    assert found == TABLE
    assert set(RULES) == set(Fault)


@pytest.mark.parametrize(
    ("status", "paid", "fault"),
    [
        (400, True, Fault.INVALID),
        (401, True, Fault.DENIED),
        (402, True, Fault.DENIED),
        (403, False, Fault.DENIED),
        (404, False, Fault.INVALID),
        (422, True, Fault.INVALID),
        (429, True, Fault.LIMITED),
        (500, True, Fault.BROKEN),
        (503, True, Fault.BROKEN),
        (302, True, Fault.BROKEN),
        (502, True, Fault.UNKNOWN),
        (504, True, Fault.UNKNOWN),
        (408, True, Fault.UNKNOWN),
        (502, False, Fault.BROKEN),
        (408, False, Fault.BROKEN),
    ],
)
def test_a_status_means_a_fault(status: int, paid: bool, fault: Fault) -> None:
    assert fault_of_status(status, paid=paid) is fault


def test_what_a_provider_says_is_one_short_line() -> None:
    error = ProviderError(Fault.INVALID, "fal", "seed:\n\tmust  be\x00 whole " + "x" * 1000)
    assert error.message.startswith("fal does not take the request as it is. It says: seed: must be whole xxx")
    assert len(error.message) < 400
    assert "\n" not in error.message


def test_nothing_is_told_of_an_account() -> None:
    error = ProviderReply("fal", 401, {}, b"").error(reason="the key fal-123 is unknown")
    assert error.message == "fal denies this installation access, or its credits are spent."


def test_a_wait_is_bounded_and_passed_on() -> None:
    failure = ProviderError(Fault.LIMITED, "fal", retry_after=10.0**9).failure()
    assert (failure.retryable, failure.retry_after) == (True, 86_400.0)
    assert ProviderError(Fault.LIMITED, "fal", retry_after=-1.0).failure().retry_after == 0.0
    assert ProviderError(Fault.LIMITED, "fal").failure().retry_after is None


def test_a_provider_may_know_better_whether_to_try_again() -> None:
    assert not ProviderError(Fault.BROKEN, "fal", retryable=False).failure().retryable
    assert ProviderError(Fault.FAILED, "fal", retryable=True).failure().retryable
