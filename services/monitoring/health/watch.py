"""How much of the mesh works, judged over time: parts are asked every 15 s, and a moment's failure is no verdict."""

from __future__ import annotations

from collections.abc import Sequence

from meshkit import metrics
from meshkit.logging import get_logger
from meshkit.loops import Loop
from services.monitoring.health.domain import Mode, PartKind, Survey, WatchedPart, mode, watched
from services.monitoring.health.probes import Probes

_log = get_logger(__name__)

_WORKS = metrics.gauge("mesh_part_healthy", "Whether a part of the mesh works, as judged over time: 1 or 0", ("part",))

CHECK_SECONDS = 15.0
LIMIT_SECONDS = 10.0


class DegradationWatch:
    """Watches every part; each replica for itself.

    Args:
        probes: Asks the parts.
    """

    def __init__(self, probes: Probes) -> None:
        self._probes = probes
        self.parts: dict[str, WatchedPart] = {}
        self.survey: Survey | None = None

    def loop(self) -> Loop:
        """Return the loop that asks."""
        return Loop("monitoring-degradation", self.check, CHECK_SECONDS)

    @property
    def mode(self) -> Mode:
        """How much works."""
        return mode(list(self.parts.values()))

    async def check(self) -> None:
        """Ask every part; body of a loop."""
        before = self.mode
        survey = await self._probes.ask(LIMIT_SECONDS)
        # What is not told of any more, as a queue without tasks and workers, is no part any more.
        parts = {one.name: self.parts.get(one.name, watched(one)).after(one, survey.at) for one in survey.parts}
        for name in self.parts.keys() - parts.keys():
            _WORKS.remove(name)
        self.parts = parts
        self.survey = survey
        for one in self.parts.values():
            _WORKS.labels(one.name).set(one.healthy)
        if self.mode is not before:
            away = sorted(one.name for one in self.parts.values() if not one.healthy)
            _log.warning("degradation_changed", mode=self.mode.value, former=before.value, away=away)

    def features(self) -> Sequence[str]:
        """Names of services, workers and providers that can be used now."""
        used = {PartKind.SERVICE, PartKind.WORKERS, PartKind.PROVIDER}
        return [one.name for one in self.parts.values() if one.healthy and one.kind in used]
