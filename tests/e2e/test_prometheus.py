"""A mesh that `atelier up --prometheus` starts, and what its monitoring tells by it."""

import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.documented import documented
from tests.e2e.harness import NOOP_ENVIRONMENT, RunningMesh, until
from tests.e2e.scraping import scraping

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: prometheus)"),
]

_EXPORTERS = ("redis-exporter", "json-exporter", "blackbox-exporter")


@pytest.fixture(scope="module")
def read_mesh(servers_folder: Path) -> Iterator[RunningMesh]:
    """A mesh with a Prometheus; the last test stops it."""
    folder = Path(tempfile.mkdtemp(dir=servers_folder, prefix="mesh-"))
    folder.chmod(0o711)
    mesh = RunningMesh(folder, NOOP_ENVIRONMENT)
    try:
        mesh.up("--prometheus")
        yield mesh
    finally:
        mesh.down()


@pytest.fixture
def alerting(read_mesh: RunningMesh, tmp_path: Path) -> Iterator[httpx.Client]:
    """A second Prometheus that reads the same services, and waits seconds before it tells."""
    with scraping(read_mesh, tmp_path, {"for: 2m": "for: 5s"}) as client:
        yield client


def test_the_alert_of_a_service_that_dies_waits_fires_and_goes(read_mesh: RunningMesh, alerting: httpx.Client) -> None:
    def alert() -> str | None:
        for one in alerting.get("/alerts").json()["data"]["alerts"]:
            if (one["labels"]["alertname"], one["labels"]["job"]) == ("AtelierProcessDown", "evaluation"):
                return str(one["state"])
        return None

    def looked() -> bool:
        """Whether it has looked at evaluation, and that answered."""
        result = alerting.get("/query", params={"query": 'up{job="evaluation"}'}).json()["data"]["result"]
        return [one["value"][1] for one in result] == ["1"]

    until(looked, "it has been read", 60)
    assert alert() is None
    states = []

    def fires() -> bool:
        kill(read_mesh, "evaluation")
        states.append(alert())
        return states[-1] == "firing"

    until(fires, "the alert fires", 120)
    assert "pending" in states, "it waits before it fires"
    until(lambda: looked() and alert() is None, "the alert goes once the service is back", 120)


def kill(mesh: RunningMesh, name: str) -> None:
    """Kill a service if it runs."""
    for each in mesh.record.processes:
        if each.name == name and each.pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it is dead, and that not yet noted
                os.kill(each.pid, signal.SIGKILL)


def test_a_service_that_dies_is_shown_as_down_until_it_is_back(read_mesh: RunningMesh) -> None:
    services = {each.name: each.metrics for each in read_mesh.record.processes if each.metrics}
    with read_mesh.http(scopes=("operator", "read")) as client:

        def ask(path: str) -> dict[str, Any]:
            answer = client.get(f"/api/system/monitoring/{path}")
            return answer.json() if answer.status_code == 200 else {}

        def down() -> list[str] | None:
            found = ask("targets")
            # A Prometheus that has just begun has found no target yet, or has not looked at all of them.
            if not found or found["total"] < len(services) or found["up"] + found["down"] < found["total"]:
                return None
            return [one["job"] for one in found["targets"] if one["health"] == "down"]

        def killed() -> bool:
            """Kill it whenever it runs, until a look of Prometheus has met that."""
            kill(read_mesh, "evaluation")
            return down() == ["evaluation"]

        until(lambda: down() == [], "every service is up", 60)
        listed = {one["job"]: f"http://{one['instance']}/metrics" for one in ask("targets")["targets"]}
        assert listed == services
        shapes = {path: documented("GET", f"/api/system/monitoring/{path}") for path in ("health", "targets")}
        for path, shape in shapes.items():
            shape.holds(ask(path))
            assert shape.empty_lists(ask(path)) == []
        health = ask("health")
        assert {one["name"]: one["status"] for one in health["exporters"]} == dict.fromkeys(_EXPORTERS, "unknown")
        assert (health["healthy"], health["prometheus_reachable"], health["issues"]) == (True, True, [])
        assert health["prometheus_url"] == read_mesh.record.prometheus_url
        until(killed, "the service is down", 60)
        [issue] = ask("health")["issues"]
        assert "evaluation" in issue
        until(lambda: down() == [], "it is back", 60)
    shown = json.loads(read_mesh.cli("status", "--json").stdout)
    assert shown["prometheus"] == read_mesh.record.prometheus_url
    assert {one["name"]: one["health"] for one in shown["processes"]}["prometheus"] == "healthy"
    rules = httpx.get(f"{shown['prometheus']}/api/v1/rules", timeout=60).json()["data"]["groups"]
    assert {Path(group["file"]).name for group in rules} == {"recording.yml", "alerts.yml"}
    process = psutil.Process(read_mesh.pid("prometheus"))
    read_mesh.down()
    assert not process.is_running()
    assert "level=error" not in read_mesh.folder.log("prometheus").read_text(encoding="utf-8")
    [said] = [line for line in (read_mesh.path / "up.log").read_text().splitlines() if "prometheus" in line][-1:]
    assert said.split() == ["○", "prometheus", "stopped"]
