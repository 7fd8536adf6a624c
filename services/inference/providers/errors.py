"""What goes wrong with a provider, and what follows from it: the one table for all of them.

| fault | category | another attempt | provider's health |
|---|---|---|---|
| `INVALID`: parameters or an input that the provider does not take | VALIDATION | no | ignored |
| `DENIED`: no access, or no credits left | PROVIDER | no | fatal |
| `LIMITED`: too many requests | RATE_LIMIT | after the wait that is asked for | ignored |
| `REFUSED`: content that the provider does not make | CONTENT_POLICY | no | ignored |
| `EMPTY`: an answer that is none: no result, no JSON, an image that is none | PROVIDER | yes | failure |
| `UNSENT`: no connection, so that nothing was sent | PROVIDER | yes | failure |
| `BROKEN`: an answer that says that the provider failed | PROVIDER | yes | failure |
| `UNKNOWN`: sent, and nobody knows what became of it | PROVIDER | no: it may have been paid | failure |
| `FAILED`: a job that the provider took and did not do, and would not do | PROVIDER | no | failure |
| `LATE`: a deadline passed | TIMEOUT | yes | failure |
| `CALLED_OFF`: ended for our sake | CANCELLED | no | ignored |
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass

from atelier.tasks.v1.enums_pb2 import (
    ERROR_CATEGORY_CANCELLED,
    ERROR_CATEGORY_CONTENT_POLICY,
    ERROR_CATEGORY_PROVIDER,
    ERROR_CATEGORY_RATE_LIMIT,
    ERROR_CATEGORY_TIMEOUT,
    ERROR_CATEGORY_VALIDATION,
    ErrorCategory,
)
from atelier.tasks.v1.service_requests_pb2 import (
    SERVICE_REQUEST_EFFECT_FAILURE,
    SERVICE_REQUEST_EFFECT_FATAL,
    SERVICE_REQUEST_EFFECT_IGNORED,
    ServiceRequestEffect,
)

from meshkit.worker.handlers import TaskFailed

_MAX_REASON = 300
_MAX_RETRY_AFTER = 24 * 3600.0
_BLANK = re.compile(r"[\s\x00-\x1f\x7f]+")
# An answer of such a status comes from what stands before the provider: the provider itself may have taken the request.
_FROM_A_PROXY = frozenset({502, 504})


class Fault(enum.Enum):
    """A kind of failure; the module's table says what each is."""

    INVALID = "invalid"
    DENIED = "denied"
    LIMITED = "limited"
    REFUSED = "refused"
    EMPTY = "empty"
    UNSENT = "unsent"
    BROKEN = "broken"
    UNKNOWN = "unknown"
    FAILED = "failed"
    LATE = "late"
    CALLED_OFF = "called_off"


@dataclass(frozen=True, slots=True)
class FaultRule:
    """What follows from a fault.

    Attributes:
        category: The category of the task's failure.
        retryable: Whether another attempt may succeed.
        effect: What it tells about the provider's health.
        sentence: What the caller is told; `{provider}` is the provider's name.
    """

    category: ErrorCategory.ValueType
    retryable: bool
    effect: ServiceRequestEffect.ValueType
    sentence: str


_IGNORED, _FAILURE = SERVICE_REQUEST_EFFECT_IGNORED, SERVICE_REQUEST_EFFECT_FAILURE


def _final(category: ErrorCategory.ValueType, effect: ServiceRequestEffect.ValueType, sentence: str) -> FaultRule:
    return FaultRule(category, retryable=False, effect=effect, sentence=sentence)


def _passing(category: ErrorCategory.ValueType, effect: ServiceRequestEffect.ValueType, sentence: str) -> FaultRule:
    return FaultRule(category, retryable=True, effect=effect, sentence=sentence)


RULES: Mapping[Fault, FaultRule] = {
    Fault.INVALID: _final(ERROR_CATEGORY_VALIDATION, _IGNORED, "{provider} does not take the request as it is."),
    Fault.DENIED: _final(
        ERROR_CATEGORY_PROVIDER,
        SERVICE_REQUEST_EFFECT_FATAL,
        "{provider} denies this installation access, or its credits are spent.",
    ),
    Fault.LIMITED: _passing(
        ERROR_CATEGORY_RATE_LIMIT, _IGNORED, "{provider} has too many requests of this installation."
    ),
    Fault.REFUSED: _final(
        ERROR_CATEGORY_CONTENT_POLICY, _IGNORED, "{provider} refused the content of the request or of its result."
    ),
    Fault.EMPTY: _passing(ERROR_CATEGORY_PROVIDER, _FAILURE, "{provider} answered without a result that can be read."),
    Fault.UNSENT: _passing(ERROR_CATEGORY_PROVIDER, _FAILURE, "{provider} could not be reached."),
    Fault.BROKEN: _passing(ERROR_CATEGORY_PROVIDER, _FAILURE, "{provider} failed."),
    Fault.UNKNOWN: _final(
        ERROR_CATEGORY_PROVIDER,
        _FAILURE,
        "The connection to {provider} was lost after the request was sent: it is not sent again, for it may be paid.",
    ),
    Fault.FAILED: _final(ERROR_CATEGORY_PROVIDER, _FAILURE, "{provider} took the request and did not do it."),
    Fault.LATE: _passing(ERROR_CATEGORY_TIMEOUT, _FAILURE, "{provider} did not finish in time."),
    Fault.CALLED_OFF: _final(ERROR_CATEGORY_CANCELLED, _IGNORED, "The request to {provider} was called off."),
}


class ProviderError(Exception):
    """A provider did not do what it was asked.

    Args:
        fault: What happened.
        provider: The provider's name, as a sentence has it (`fal`).
        reason: The provider's own words, where they help the caller; shortened, and without what is secret.
        retry_after: Seconds that the provider asks to be left alone.
        http_status: Status of its answer.
        retryable: Whether another attempt may succeed, where the provider itself says so.
    """

    def __init__(
        self,
        fault: Fault,
        provider: str,
        reason: str = "",
        *,
        retry_after: float | None = None,
        http_status: int | None = None,
        retryable: bool | None = None,
    ) -> None:
        self.fault = fault
        self.rule = RULES[fault]
        self.retryable = self.rule.retryable if retryable is None else retryable
        self.retry_after = None if retry_after is None else min(max(retry_after, 0.0), _MAX_RETRY_AFTER)
        self.http_status = http_status
        said = _BLANK.sub(" ", reason).strip()[:_MAX_REASON]
        sentence = self.rule.sentence.format(provider=provider)
        self.message = f"{sentence} It says: {said}" if said else sentence
        super().__init__(self.message)

    def failure(self) -> TaskFailed:
        """Return it as the failure of a task."""
        return TaskFailed(self.message, self.rule.category, self.retryable, retry_after=self.retry_after)


def fault_of_status(status: int, *, paid: bool) -> Fault:
    """Return what an answer's status means where its body says nothing else.

    Args:
        status: The status; not a success.
        paid: Whether the request was one that may cost money.
    """
    if status in (401, 402, 403):
        return Fault.DENIED
    if status == 408:
        return Fault.UNKNOWN if paid else Fault.BROKEN
    if status == 429:
        return Fault.LIMITED
    if paid and status in _FROM_A_PROXY:
        return Fault.UNKNOWN
    if 400 <= status < 500:
        return Fault.INVALID
    return Fault.BROKEN
