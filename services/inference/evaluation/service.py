"""The use case: have an evaluator judge a picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from meshkit import metrics
from meshkit.errors import invalid
from meshkit.logging import get_logger
from services.inference.evaluation.domain import Evaluated, Evaluator, EvaluatorFailedError, WantedShot
from services.inference.evaluation.pictures import Pictures, PictureSource
from services.inference.evaluation.record import EvaluatorHealth, EvaluatorRecord

_log = get_logger(__name__)

_EVALUATIONS = metrics.counter("evaluations", "Pictures that were judged.", ("provider", "outcome"))
_SECONDS = metrics.histogram("evaluation_seconds", "How long the judging of a picture took.", ("provider",))

_LEFT_ALONE = "The evaluator is left alone for a while: its last evaluations failed."


@dataclass(frozen=True, slots=True)
class EvaluatorDesk:
    """An evaluator, and what brings pictures to it, a bounded number at a time."""

    evaluator: Evaluator
    pictures: Pictures


class ShotEvaluation:
    """Evaluates pictures.

    Args:
        evaluators: Who judges, by the spelling of the provider; the first where a caller names none.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        evaluators: Mapping[str, EvaluatorDesk],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._evaluators = evaluators
        self._clock = clock
        self._records = {name: EvaluatorRecord(clock) for name in evaluators}

    async def evaluate(self, tenant: str, source: PictureSource, wanted: WantedShot, provider: str) -> Evaluated:
        """Evaluate a picture.

        Args:
            tenant: Whose picture it is.
            source: Where it is.
            wanted: What the caller expects.
            provider: Who judges; empty for the first.

        Returns:
            What was found, or why the evaluator failed.

        Raises:
            MeshError: `INVALID` for a picture that is none and an evaluator that this installation lacks; the errors of
                getting the picture.
        """
        provider, desk = self._desk(provider)
        record = self._records[provider]
        async with desk.pictures.opened(tenant, source) as picture:
            started = self._clock()
            if not record.admit():
                _EVALUATIONS.labels(provider, "rejected").inc()
                return Evaluated(None, _LEFT_ALONE, 0.0)
            try:
                findings = await desk.evaluator.judge(picture, wanted)
            except EvaluatorFailedError as failure:
                seconds = self._clock() - started
                record.failed(seconds, counts=failure.counts, fatal=failure.fatal)
                _EVALUATIONS.labels(provider, "failed").inc()
                _SECONDS.labels(provider).observe(seconds)
                _log.info("evaluation_failed", provider=provider, cause=failure.message)
                return Evaluated(None, failure.message, seconds)
            except BaseException:  # nobody waits for it any more, or a fault of ours: no word about the evaluator
                record.withdraw()
                raise
            seconds = self._clock() - started
            record.succeeded(seconds)
            _EVALUATIONS.labels(provider, "succeeded").inc()
            _SECONDS.labels(provider).observe(seconds)
            return Evaluated(findings, "", seconds)

    def health(self, provider: str) -> EvaluatorHealth:
        """Tell how an evaluator does.

        Raises:
            MeshError: `INVALID`: this installation lacks it.
        """
        return self._records[self._desk(provider)[0]].health()

    def _desk(self, provider: str) -> tuple[str, EvaluatorDesk]:
        name = provider or next(iter(self._evaluators))
        if (desk := self._evaluators.get(name)) is None:
            known = ", ".join(self._evaluators)
            raise invalid("provider", f"{name} does not evaluate pictures here; {known} may be named", "enum")
        return name, desk
