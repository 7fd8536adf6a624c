"""The parts of the mesh, whether each works, and what follows for the whole. Pure."""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from meshkit.loops import LoopState
from services.monitoring.supervision.domain import NOBODY, LoopOverview

UNHEALTHY_AFTER = 3
HEALTHY_AFTER = 2
# Without it the work of workers that died is never given to others.
CRITICAL_LOOPS = frozenset({"tasks_expiry"})
# Without it photos are not seen; critical where a mesh has cameras.
FILE_WATCHER = "file_watcher"
_BREAKER_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MOST_NAME_CHARS = 64


class CircuitState(enum.StrEnum):
    """State of a breaker; the better first."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


_BY_BADNESS = list(CircuitState)


class PartKind(enum.StrEnum):
    """What a part is."""

    STORE = "store"
    BUS = "bus"
    SERVICE = "service"
    WORKERS = "workers"
    PROVIDER = "provider"


@dataclass(frozen=True, slots=True)
class PartFinding:
    """What asking a part has shown.

    Attributes:
        critical: Whether the mesh as a whole is unhealthy without it.
        error: What is wrong; None where it works.
        seconds: How long the answer took.
        circuit: State of the worst breaker before it.
        details: Further facts.
    """

    name: str
    display_name: str
    kind: PartKind
    critical: bool
    url: str
    error: str | None = None
    seconds: float | None = None
    circuit: CircuitState = CircuitState.CLOSED
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BreakerPolicyView:
    """When a breaker opens and closes."""

    failure_threshold: int
    recovery_timeout: float
    half_open_max_calls: int
    success_threshold: int


@dataclass(frozen=True, slots=True)
class BreakerView:
    """A breaker as operators see it.

    Attributes:
        provider: Spelling of the provider.
        key: Application or model; empty for the provider as a whole.
    """

    provider: str
    key: str
    policy: BreakerPolicyView
    state: CircuitState = CircuitState.CLOSED
    failure_count: int = 0
    success_count: int = 0
    total_calls: int = 0
    rejected_calls: int = 0
    last_failure_at: datetime | None = None
    opened_at: datetime | None = None

    @property
    def name(self) -> str:
        """The provider, and the key as far as names of breakers can hold it."""
        if not self.key:
            return self.provider
        full = f"{self.provider}-{self.key}"
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", full)
        if plain == full and len(plain) <= _MOST_NAME_CHARS:
            return plain
        # What was replaced or cut may tell two keys apart.
        mark = hashlib.sha256(full.encode()).hexdigest()[:6]
        return f"{plain[: _MOST_NAME_CHARS - 7]}-{mark}"


@dataclass(frozen=True, slots=True)
class QueueView:
    """A queue: what waits in it, and how many workers serve it."""

    name: str
    waiting: int
    workers: int


@dataclass(frozen=True, slots=True)
class Survey:
    """What asking every part has shown.

    Attributes:
        parts: The parts.
        breakers: The breakers; None where nobody can tell.
        stranded: Tasks that wait in queues which no worker serves.
    """

    at: datetime
    parts: Sequence[PartFinding]
    breakers: Sequence[BreakerView] | None
    stranded: Mapping[str, int]


class WholeState(enum.StrEnum):
    """The whole in one word."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


def is_breaker_name(name: str) -> bool:
    """Whether a breaker can be called so."""
    return _BREAKER_NAME.fullmatch(name) is not None


def worst(states: Sequence[CircuitState]) -> CircuitState:
    """Return the worst of some states; closed where there is none."""
    return max(states, key=_BY_BADNESS.index, default=CircuitState.CLOSED)


def with_watcher(loops: Sequence[LoopOverview]) -> list[LoopOverview]:
    """Return loops with the one that watches folders, also where no process has ever had it."""
    if any(one.name == FILE_WATCHER for one in loops):
        return list(loops)
    missing = LoopOverview(FILE_WATCHER, LoopState.CRASHED, error=NOBODY)
    return sorted((*loops, missing), key=lambda one: one.name)


def verdict(
    survey: Survey, loops: Sequence[LoopOverview], critical: Collection[str] = CRITICAL_LOOPS
) -> tuple[WholeState, list[str]]:
    """Judge the whole.

    Args:
        survey: What asking every part has shown.
        loops: The background loops.
        critical: Names of those without which the mesh is unhealthy.

    Returns:
        The verdict, and the names of what does not work: of what is critical alone, where some of that is away.
    """
    away = [(one.name, one.critical) for one in survey.parts if one.error is not None]
    away += [(one.name, one.name in critical) for one in loops if one.state is not LoopState.RUNNING]
    if worst_away := [name for name, is_critical in away if is_critical]:
        return WholeState.UNHEALTHY, worst_away
    return (WholeState.DEGRADED if away else WholeState.HEALTHY), [name for name, _ in away]


def worker_parts(
    queues: Sequence[QueueView], critical: Sequence[str], circuits: Mapping[str, CircuitState], seconds: float
) -> list[PartFinding]:
    """Judge the workers of queues: those of critical queues must be there, others where something waits.

    Args:
        queues: All queues.
        critical: Names of critical ones.
        circuits: By queue, the worst breaker before its work.
        seconds: How long it took to ask.
    """
    parts = []
    for queue in queues:
        if not (queue.workers or queue.waiting or queue.name in critical):
            continue
        error = None if queue.workers else f"no worker serves it, and {queue.waiting} tasks wait"
        parts.append(
            replace(
                workers_of(queue.name, critical),
                error=error,
                seconds=seconds,
                circuit=circuits.get(queue.name, CircuitState.CLOSED),
            )
        )
    return parts


def workers_of(queue: str, critical: Sequence[str]) -> PartFinding:
    """Return the part that the workers of a queue are."""
    return PartFinding(
        f"{queue}_workers", f"Workers of the queue {queue}", PartKind.WORKERS, queue in critical, f"queue:{queue}"
    )


def provider_parts(breakers: Sequence[BreakerView], seconds: float) -> list[PartFinding]:
    """Judge providers by their breakers: one that takes no calls does not work."""
    by_provider: dict[str, list[CircuitState]] = {}
    for breaker in breakers:
        by_provider.setdefault(breaker.provider, []).append(breaker.state)
    return [
        PartFinding(
            provider.lower(),
            f"Calls to {provider}",
            PartKind.PROVIDER,
            critical=False,
            url=f"provider:{provider}",
            error="its breaker is open" if worst(states) is CircuitState.OPEN else None,
            seconds=seconds,
            circuit=worst(states),
        )
        for provider, states in by_provider.items()
    ]


class Mode(enum.StrEnum):
    """How much of the mesh works."""

    NORMAL = "normal"
    DEGRADED = "degraded"
    MINIMAL = "minimal"
    OFFLINE = "offline"


@dataclass(frozen=True, slots=True)
class WatchedPart:
    """A part over time: unhealthy after three failures in a row, healthy again after two successes."""

    name: str
    kind: PartKind
    critical: bool
    healthy: bool = True
    checked_at: datetime | None = None
    failures: int = 0
    successes: int = 0
    error: str | None = None

    def after(self, finding: PartFinding, at: datetime) -> WatchedPart:
        """Return it after it was asked once more."""
        if finding.error is None:
            successes = self.successes + 1
            healthy = self.healthy or successes >= HEALTHY_AFTER
            return replace(self, healthy=healthy, checked_at=at, failures=0, successes=successes, error=None)
        failures = self.failures + 1
        healthy = self.healthy and failures < UNHEALTHY_AFTER
        return replace(self, healthy=healthy, checked_at=at, failures=failures, successes=0, error=finding.error)


def watched(finding: PartFinding) -> WatchedPart:
    """Return a part that was never asked."""
    return WatchedPart(finding.name, finding.kind, finding.critical)


def mode(parts: Sequence[WatchedPart]) -> Mode:
    """Return how much works."""
    away = [one for one in parts if not one.healthy]
    critical = [one for one in parts if one.critical]
    critical_away = [one for one in critical if not one.healthy]
    if not away:
        return Mode.NORMAL
    if not critical_away:
        return Mode.DEGRADED
    return Mode.OFFLINE if len(critical_away) == len(critical) else Mode.MINIMAL
