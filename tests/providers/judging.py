"""What comes of a provider's misbehaviour: a row of a table, and how an attempt is judged by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from atelier.tasks.v1.enums_pb2 import ErrorCategory
from atelier.tasks.v1.service_requests_pb2 import ServiceRequestEffect

from meshkit.worker.handlers import TaskFailed
from tests.providers.attempt import FakeAttempt
from tests.providers.base import Misbehaviour, ProviderServer


@dataclass(frozen=True)
class Row:
    """One misbehaviour, and what is to come of it.

    Attributes:
        name: Its name in the table.
        arrange: Has the server misbehave.
        category: Of the task's failure.
        retryable: Whether another attempt may follow.
        effect: What it tells about the provider's health.
        paid: Requests that the provider charges for.
        retry_after: Seconds that the provider asks for.
        says: What the failure's sentence has in it.
        state: Of the request in the end.
        only: The one server that can misbehave so; all where empty.
    """

    name: str
    arrange: Callable[[Any], object]
    category: str
    retryable: bool
    effect: str
    paid: int = 0
    retry_after: float | None = None
    says: str = ""
    state: str = "FAILED"
    only: str = ""

    @classmethod
    def of(cls, how: Misbehaviour, *expected: Any, **more: Any) -> Self:
        """Return a row of a server that misbehaves so at its next request."""
        return cls(how.name, lambda server: server.misbehave(how), *expected, **more)

    def __str__(self) -> str:
        return self.name


def judge(row: Row, failed: TaskFailed, attempt: FakeAttempt, server: ProviderServer) -> None:
    """Hold an attempt against a row: it failed as the row says, and sent one request at most."""
    assert (category(failed), failed.retryable, failed.retry_after) == (row.category, row.retryable, row.retry_after)
    assert row.says in failed.message
    assert (effects(attempt), attempt.states[-1]) == ([row.effect], row.state)
    assert server.paid == row.paid
    assert server.count("POST") <= 1
    key = getattr(server, "key", None)
    assert key is None or key not in failed.message


def category(failed: TaskFailed) -> str:
    """Return the category of a failure, as the documents spell it."""
    return ErrorCategory.Name(failed.category).removeprefix("ERROR_CATEGORY_")


def effects(attempt: FakeAttempt) -> list[str]:
    """Return what each request of an attempt told about the provider's health."""
    names = [ServiceRequestEffect.Name(row.effect) for row in attempt.rows.values()]
    return [name.removeprefix("SERVICE_REQUEST_EFFECT_") for name in names]


def effect(attempt: FakeAttempt) -> str:
    """Return what the last request of an attempt told about the provider's health."""
    return effects(attempt)[-1]
