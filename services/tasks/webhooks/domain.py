"""Webhooks: what is delivered, when it is tried again, how it is signed. Pure: no clock, no database, no wire.

Headers, secrets and the times between attempts are those of the Standard Webhooks specification.
"""

from __future__ import annotations

import base64
import enum
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from standardwebhooks import Webhook

from meshkit.retry_after import asked_pause

# Waits after the first, second, ... failed attempt: about three days in all.
SCHEDULE = tuple(
    timedelta(seconds=seconds)
    for seconds in (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
)
# However late a receiver asks to be asked again: no longer than the schedule's own longest wait.
LONGEST_WAIT = SCHEDULE[-1]
# Answers by which a receiver may say when it wants to be asked again.
BUSY_STATUSES = frozenset({429, 503})
# Receivers that failed together are not asked together again.
JITTER = 0.1
TIMEOUT_SECONDS = 15.0
# A claimed delivery is its sender's for so long, and as long again at each extension; of one that was killed
# or stands still another claims it.
LEASE = timedelta(seconds=8)
EXTEND_SECONDS = 2.5
MAX_ERROR_LENGTH = 500
GONE_STATUS = 410
_SECRET_BYTES = 32


class DeliveryStatus(enum.StrEnum):
    """Where a delivery stands."""

    PENDING = "PENDING"
    DELIVERED = "DELIVERED"
    FAILED = "FAILED"


class DeliveryFailure(enum.StrEnum):
    """Why a delivery was given up."""

    EXHAUSTED = "EXHAUSTED"
    GONE = "GONE"
    REFUSED = "REFUSED"


# Members of an event by the path, or the paths, of stored objects: their addresses live shorter than deliveries wait.
MediaMembers = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """An event to be told to an address.

    Attributes:
        id: Identifier of the event.
        target: Host and port of the address: what is slow or dead is so for all of its addresses.
        body: The event as JSON, as it is signed and sent but for its media.
        media: Members of the body that become signed addresses when it is sent, with the paths of stored objects.
        traceparent: Trace of its entity, where that is no task.
    """

    id: UUID
    tenant: str
    entity_id: UUID
    entity_version: int
    event_type: str
    url: str
    target: str
    body: bytes
    media: MediaMembers = field(default_factory=dict)
    traceparent: str = ""


class ReceiverLane(NamedTuple):
    """What a tenant sends to one host and port."""

    tenant: str
    target: str


@dataclass(frozen=True, slots=True)
class ClaimRoom:
    """How many deliveries a sender takes now.

    Attributes:
        deliveries: At most, in all.
        per_tenant: At most of one tenant, with those under way.
        per_lane: At most of one tenant to one target, with those under way.
        tenants: Under way by tenant.
        lanes: Under way by lane, and as many as `per_lane` for one that shall be given none.
    """

    deliveries: int
    per_tenant: int
    per_lane: int
    tenants: Mapping[str, int] = field(default_factory=dict)
    lanes: Mapping[ReceiverLane, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """A delivery that this process shall send.

    Attributes:
        lease: Fencing token: only its holder may write the outcome.
        tries: Attempts since it was handed in or sent again by hand.
        now: The database's time of the claim.
        disabled: Whether the receiver has answered 410 before.
        traceparent: Trace of the request that created its task, workflow or training; empty for none.
        keys: What signs, newest first.
    """

    id: UUID
    lease: UUID
    tenant: str
    url: str
    target: str
    body: bytes
    media: MediaMembers | None
    tries: int
    now: datetime
    disabled: bool
    traceparent: str
    keys: Sequence[str]


@dataclass(frozen=True, slots=True)
class ReceiverAnswer:
    """What came of one request.

    Attributes:
        status_code: HTTP status; None without an answer.
        error: Why the attempt failed; None where it did not.
        refused: Whether the address may not be reached at all.
        seconds: How long it took.
        asked_wait: How long the receiver asks to be left alone.
    """

    status_code: int | None
    error: str | None
    refused: bool = False
    seconds: float = 0.0
    asked_wait: timedelta = timedelta()


@dataclass(frozen=True, slots=True)
class DeliveryVerdict:
    """What follows from an attempt.

    Attributes:
        wait: Time until the next attempt, for a delivery that goes on.
        failure: Why it is given up, for one that is.
    """

    status: DeliveryStatus
    wait: timedelta | None = None
    failure: DeliveryFailure | None = None


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """A delivery as the database holds it."""

    id: UUID
    tenant: str
    entity_id: UUID
    entity_version: int
    event_type: str
    url: str
    status: str
    failure: str | None
    attempt_count: int
    last_status_code: int | None
    last_error: str | None
    created_at: datetime
    due_at: datetime | None
    ended_at: datetime | None
    body: bytes
    media: MediaMembers | None


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """One request to the receiver, as the log has it."""

    started_at: datetime
    duration_seconds: float
    status_code: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Secret:
    """What signs a tenant's webhooks."""

    key: str
    created_at: datetime


def judge(answer: ReceiverAnswer, tries: int, spread: float) -> DeliveryVerdict:
    """Return what follows from an attempt.

    Args:
        answer: What came of it.
        tries: Attempts before it.
        spread: Where in the jitter's range the next wait shall be, from -1 to 1.
    """
    if answer.refused:
        return DeliveryVerdict(DeliveryStatus.FAILED, failure=DeliveryFailure.REFUSED)
    if answer.status_code is not None and 200 <= answer.status_code < 300:
        return DeliveryVerdict(DeliveryStatus.DELIVERED)
    if answer.status_code == GONE_STATUS:
        return DeliveryVerdict(DeliveryStatus.FAILED, failure=DeliveryFailure.GONE)
    if tries >= len(SCHEDULE):
        return DeliveryVerdict(DeliveryStatus.FAILED, failure=DeliveryFailure.EXHAUSTED)
    wait = SCHEDULE[tries] * (1 + JITTER * spread)
    # It is never asked sooner than scheduled: one that always says "at once" would be given up within seconds. Nor is
    # it asked sooner than it says, so that jitter only adds here.
    asked = answer.asked_wait * (1 + JITTER * abs(spread))
    return DeliveryVerdict(DeliveryStatus.PENDING, wait=max(wait, min(asked, LONGEST_WAIT)))


def asked_wait(status: int, header: str, now: datetime) -> timedelta:
    """How long a receiver asks to be left alone (RFC 9110, 10.2.3).

    Args:
        status: Status of its answer; one that does not say that it is busy asks for nothing.
        header: Its `Retry-After`: seconds or a date; what is malformed asks for nothing.
        now: The present, with a time zone.

    Returns:
        The time, `LONGEST_WAIT` at most, never negative.
    """
    if status not in BUSY_STATUSES:
        return timedelta()
    return min(asked_pause(header, now) or timedelta(), LONGEST_WAIT)


def new_secret() -> str:
    """Return a fresh signing secret."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode('ascii')}"


def headers(event_id: UUID, sent_at: datetime, body: bytes, keys: Sequence[str]) -> dict[str, str]:
    """Headers of a request: one signature by each of the secrets.

    Args:
        event_id: Identifier of the event, the same at every attempt.
        sent_at: When it is sent, in UTC.
        body: What is sent.
        keys: The secrets, newest first.
    """
    ident, text = str(event_id), body.decode()
    return {
        "content-type": "application/json",
        "webhook-id": ident,
        "webhook-timestamp": str(int(sent_at.timestamp())),
        "webhook-signature": " ".join(Webhook(key).sign(ident, sent_at, text) for key in keys),
    }
