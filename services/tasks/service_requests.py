"""Requests to providers that may cost money. Pure: no database, no clock.

Spellings are those of the contract's enums without their prefix, as in `domain`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from atelier.tasks.v1 import task_pb2

from meshkit.catalog import PROVIDERS, TASK_TYPES
from meshkit.validation import apply_defaults
from services.tasks.domain import TaskRecord


class ServiceRequestState(enum.StrEnum):
    """Where a request stands."""

    SENDING = "SENDING"
    ACCEPTED = "ACCEPTED"
    DONE = "DONE"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"


class ServiceRequestEffect(enum.StrEnum):
    """What a request that has ended tells about its provider's health.

    `IGNORED` tells nothing of it: the caller's mistake, a refusal of content, a rate limit. `FATAL` tells that the next
    request will fail too: credentials that are refused, credit that is spent.
    """

    IGNORED = "IGNORED"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    FATAL = "FATAL"


MAX_RESUME_BYTES = 8192
OPEN = frozenset({ServiceRequestState.SENDING, ServiceRequestState.ACCEPTED})


@dataclass(frozen=True, slots=True)
class ServiceRequestNote:
    """A request as its worker tells of it, and as the database has it. None where nothing is known.

    Attributes:
        id: Drawn by the worker.
        provider_type: Who is asked.
        target: Application or model; empty where the provider does not count by it.
        operation: What is asked for.
        state: Where it stands.
        service_task_id: Name that the provider gave it.
        resume: A serialized Struct: what another attempt needs to go on with it.
        http_status: Status of the answer.
        category: Why it failed.
        message: The same as a sentence.
        effect: What it tells about the provider's health.
        retry_after: Seconds to wait that the provider asks for.
        sent_at: When it was sent.
        ended_at: When it ended.
        cost: What the provider says that it costs.
        currency: Currency of the cost.
        attempt: The attempt that has sent it; 0 where only the database knows.
    """

    id: UUID
    provider_type: str
    target: str
    operation: str
    state: ServiceRequestState
    service_task_id: str | None = None
    resume: bytes | None = None
    http_status: int | None = None
    category: str | None = None
    message: str | None = None
    effect: ServiceRequestEffect | None = None
    retry_after: float | None = None
    sent_at: datetime | None = None
    ended_at: datetime | None = None
    cost: float | None = None
    currency: str | None = None
    attempt: int = 0


class NoteVerdict(enum.Enum):
    """What became of a note.

    TAKEN: it is committed. LOST: the attempt is not the session's any more, and another one goes on with its requests.
    ENDED: the task has ended, and nobody goes on with them. FOREIGN: the identifier is another task's request.
    """

    TAKEN = enum.auto()
    LOST = enum.auto()
    ENDED = enum.auto()
    FOREIGN = enum.auto()


class LeasedTask(NamedTuple):
    """What a worker is given.

    Attributes:
        record: The task.
        requests: Its requests to providers that have not ended.
    """

    record: TaskRecord
    requests: Sequence[ServiceRequestNote]


def named_at_provider(record: TaskRecord, service_task_id: str) -> bytes:
    """Return the stored members of a task whose request has a name at its provider now.

    The name is the task's `service_task_id`, and stands in the provider's settings, and in the type's own message,
    where the contract has a field for it.
    """
    body = task_pb2.Task.FromString(record.body)
    body.service_task_id = service_task_id
    provider = PROVIDERS[record.provider_type]
    if provider.service_task_id is not None:
        settings: Any = getattr(body.provider_config, provider.config)
        settings.SetInParent()
        setattr(settings, provider.service_task_id, service_task_id)
        apply_defaults(settings)
        detail: Any = getattr(body, TASK_TYPES[record.task_type].detail)
        if provider.service_task_id in detail.DESCRIPTOR.fields_by_name:
            setattr(detail, provider.service_task_id, service_task_id)
    return body.SerializeToString()
