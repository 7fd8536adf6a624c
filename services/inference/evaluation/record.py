"""How well an evaluator does, and whether it is left alone for a while: the circuit breaker of this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

BreakerState: TypeAlias = Literal["closed", "open", "half_open"]

# Those of the breakers of providers that tasks pass.
FAILURE_THRESHOLD = 5
RECOVERY_SECONDS = 30.0
HALF_OPEN_CALLS = 3
SUCCESS_THRESHOLD = 2
# Evaluations that the health score is about.
_RECENT = 50


@dataclass(frozen=True, slots=True)
class EvaluatorHealth:
    """How an evaluator does.

    Attributes:
        score: Share of the last evaluations that succeeded; 0 while the breaker is open.
        total: Evaluations since the process has started.
        success_rate: Share of them that succeeded; 1 before the first.
        average_seconds: How long one took on average; 0 before the first.
        breaker: State of the breaker.
    """

    score: float
    total: int
    success_rate: float
    average_seconds: float
    breaker: BreakerState

    @property
    def healthy(self) -> bool:
        """Whether evaluations are tried as usual."""
        return self.breaker == "closed"


class EvaluatorRecord:
    """Counts the evaluations of one evaluator, and opens its breaker where too many fail in a row.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._total = self._succeeded = 0
        self._seconds = 0.0
        self._recent: deque[bool] = deque(maxlen=_RECENT)
        self._failures = 0
        self._opened: float | None = None
        self._trials = self._passed = 0

    def admit(self) -> bool:
        """Tell whether an evaluation may be tried; where the breaker is half open it then counts as a trial."""
        state = self._state()
        if state == "open":
            return False
        if state == "half_open":
            if self._trials >= HALF_OPEN_CALLS:
                return False
            self._trials += 1
        return True

    def succeeded(self, seconds: float) -> None:
        """Count an evaluation that was done."""
        self._count(seconds, success=True)
        self._failures = 0
        if self._opened is not None:
            self._trials = max(0, self._trials - 1)
            self._passed += 1
            if self._passed >= SUCCESS_THRESHOLD:
                self._opened = None

    def failed(self, seconds: float, *, counts: bool, fatal: bool) -> None:
        """Count an evaluation that was not.

        Args:
            seconds: How long it took.
            counts: Whether it tells of the evaluator's health.
            fatal: Whether the next one would fail alike.
        """
        self._count(seconds, success=False)
        if not counts:
            self.withdraw()
            return
        self._failures += 1
        if fatal or self._opened is not None or self._failures >= FAILURE_THRESHOLD:
            self._opened = self._clock()
            self._trials = self._passed = 0

    def withdraw(self) -> None:
        """Give the place of a trial back whose outcome tells nothing."""
        self._trials = max(0, self._trials - 1)

    def health(self) -> EvaluatorHealth:
        """Tell how the evaluator does."""
        state = self._state()
        recent = sum(self._recent) / len(self._recent) if self._recent else 1.0
        return EvaluatorHealth(
            score=0.0 if state == "open" else recent,
            total=self._total,
            success_rate=self._succeeded / self._total if self._total else 1.0,
            average_seconds=self._seconds / self._total if self._total else 0.0,
            breaker=state,
        )

    def _count(self, seconds: float, *, success: bool) -> None:
        self._total += 1
        self._succeeded += success
        self._seconds += seconds
        self._recent.append(success)

    def _state(self) -> BreakerState:
        if self._opened is None:
            return "closed"
        return "half_open" if self._clock() - self._opened >= RECOVERY_SECONDS else "open"
