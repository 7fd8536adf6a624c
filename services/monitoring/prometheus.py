"""What Prometheus tells of what it scrapes, by its HTTP API."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
from atelier.monitoring.v1 import prometheus_pb2 as pb
from atelier.monitoring.v1.system_service_pb2 import ListTargetsResponse

from meshkit.errors import MeshError, unavailable
from meshkit.moments import assign

_SECONDS = 5.0
# Exporters that are tracked, with the addresses that they have where nobody says otherwise.
_EXPORTERS = {
    "redis-exporter": "redis-exporter:9121",
    "json-exporter": "json-exporter:7979",
    "blackbox-exporter": "blackbox-exporter:9115",
}
_HEALTH = {"up": pb.TARGET_HEALTH_UP, "down": pb.TARGET_HEALTH_DOWN}
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}


class PrometheusStack:
    """Asks Prometheus.

    Args:
        url: Its address; empty where there is none.
    """

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=_SECONDS) if url else None
        parts = urlsplit(url)
        self._shown = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    async def close(self) -> None:
        """Close its connections."""
        if self._client is not None:
            await self._client.aclose()

    async def targets(self, now: datetime) -> ListTargetsResponse:
        """Return all targets.

        Raises:
            MeshError: `UNAVAILABLE` where Prometheus does not answer.
        """
        targets = [_target(one) for one in (await self._get("/api/v1/targets?state=active"))["activeTargets"]]
        response = ListTargetsResponse(
            targets=targets,
            total=len(targets),
            up=_count(targets, pb.TARGET_HEALTH_UP),
            down=_count(targets, pb.TARGET_HEALTH_DOWN),
            jobs=dict.fromkeys(one.job for one in targets),
        )
        assign(response.timestamp, now)
        return response

    async def health(self, now: datetime) -> pb.MonitoringStackHealth:
        """Return the health of Prometheus and of what it scrapes; it never raises for Prometheus being away."""
        health = pb.MonitoringStackHealth(prometheus_url=self._shown)
        assign(health.timestamp, now)
        health.metrics_collection.SetInParent()
        try:
            targets = list((await self.targets(now)).targets)
            await self._write_collection(health.metrics_collection, targets)
        except MeshError as error:
            health.issues.append(error.message)
            return health
        up, down = _count(targets, pb.TARGET_HEALTH_UP), _count(targets, pb.TARGET_HEALTH_DOWN)
        health.prometheus_reachable = True
        health.healthy = down == 0 or up > down
        for job in dict.fromkeys(one.job for one in targets):
            own = [one for one in targets if one.job == job]
            counts = [_count(own, state) for state in (*_HEALTH.values(), pb.TARGET_HEALTH_UNKNOWN)]
            health.targets_summary.add(job=job, total=len(own), up=counts[0], down=counts[1], unknown=counts[2])
        health.exporters.extend(_exporters(targets))
        for one in targets:
            if one.health == pb.TARGET_HEALTH_DOWN:
                health.issues.append(f"Target {one.instance} of job {one.job} is down: {one.last_error}")
        return health

    async def _write_collection(self, target: pb.MetricsCollection, targets: Sequence[pb.ScrapeTarget]) -> None:
        up = [one for one in targets if one.health == pb.TARGET_HEALTH_UP and one.HasField("last_scrape")]
        target.collecting = bool(up)
        if up:
            target.last_successful_scrape.CopyFrom(max((one.last_scrape for one in up), key=lambda one: one.seconds))
        target.total_series = int((await self._get("/api/v1/status/tsdb"))["headStats"]["numSeries"])
        text = (await self._get("/api/v1/status/config"))["yaml"]
        lines = [line.strip() for line in text.splitlines() if line.strip().startswith("scrape_interval:")]
        target.scrape_interval_seconds = _seconds(lines[0].partition(":")[2].strip()) if lines else 60

    async def _get(self, path: str) -> Any:
        if self._client is None:
            raise unavailable("No Prometheus is configured", reason="PROMETHEUS_UNAVAILABLE")
        try:
            answer = await self._client.get(path)
            answer.raise_for_status()
            return answer.json()["data"]
        except (httpx.HTTPError, ValueError, KeyError):
            raise unavailable("Prometheus does not answer", reason="PROMETHEUS_UNAVAILABLE") from None


def _exporters(targets: Sequence[pb.ScrapeTarget]) -> list[pb.ExporterStatus]:
    """Return the tracked exporters; of one that Prometheus does not scrape nothing is known."""
    exporters = []
    for name, endpoint in _EXPORTERS.items():
        scraped = [one for one in targets if one.job == name]
        if not scraped:
            exporters.append(pb.ExporterStatus(name=name, status=pb.TARGET_HEALTH_UNKNOWN, endpoint=endpoint))
        for one in scraped:
            exporter = pb.ExporterStatus(name=name, status=one.health, endpoint=one.instance)
            if one.HasField("last_scrape"):
                exporter.last_scrape.CopyFrom(one.last_scrape)
            if one.HasField("last_error"):
                exporter.error = one.last_error
            exporters.append(exporter)
    return exporters


def _count(targets: Sequence[pb.ScrapeTarget], health: pb.TargetHealth.ValueType) -> int:
    return sum(one.health == health for one in targets)


def _target(one: dict[str, Any]) -> pb.ScrapeTarget:
    labels = {str(name): str(value) for name, value in one["labels"].items()}
    target = pb.ScrapeTarget(
        job=labels.get("job", ""),
        instance=labels.get("instance", ""),
        health=_HEALTH.get(one["health"], pb.TARGET_HEALTH_UNKNOWN),
        labels=labels,
        last_error=one.get("lastError") or None,
        scrape_duration_seconds=one.get("lastScrapeDuration", 0.0),
    )
    moment = datetime.fromisoformat(one["lastScrape"])
    if moment.year > 1:  # the zero time of Go: never
        assign(target.last_scrape, moment)
    return target


def _seconds(text: str) -> int:
    """Return a duration as Prometheus writes it, `1m30s`, in whole seconds."""
    return round(sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"([0-9]+)(ms|s|m|h)", text)))
