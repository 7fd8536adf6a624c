"""What `/api/system/monitoring` tells, against a real Prometheus while one of its targets is killed."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from atelier_cli.embedded.process import RunningServer, free_ports
from atelier_cli.embedded.prometheus import MetricsPage, PrometheusServer
from tests.documented import documented
from tests.integration.monitoring.conftest import StartMesh

PAGE = "import sys, time, prometheus_client as p; p.start_http_server(int(sys.argv[1]), '127.0.0.1'); time.sleep(600)"


@pytest.fixture
def pages() -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    """Four processes with a page of metrics each, by port."""
    started = {port: subprocess.Popen([sys.executable, "-c", PAGE, str(port)]) for port in free_ports(4)}
    yield started
    for process in started.values():
        process.kill()
        process.wait()


@pytest.fixture
def prometheus(tmp_path: Path, pages: dict[int, Any]) -> Iterator[str]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("needs prometheus (Debian: the package `prometheus`)")
    jobs = ("atelier", "atelier", "atelier", "redis-exporter")
    read = [MetricsPage(job, f"127.0.0.1:{port}") for job, port in zip(jobs, pages, strict=True)]
    [port] = free_ports(1)
    running = RunningServer(PrometheusServer(tmp_path, port, program, read, tmp_path / "log", rules=(), seconds=1))
    running.launch()
    yield f"http://operator:hidden@127.0.0.1:{port}"
    running.stop()


async def once(http: httpx.AsyncClient, path: str, holds: Callable[[Any], bool]) -> Any:
    """Return an answer once it is as it should be."""

    async def ask() -> Any:
        answer = await http.get(path)
        return answer.json() if answer.status_code == 200 else {}

    async with asyncio.timeout(60):
        while not holds(found := await ask()):  # noqa: ASYNC110 -- what is waited for has no event
            await asyncio.sleep(0.1)
    return found


async def test_health_and_targets_follow_a_service_that_is_killed(
    start_mesh: StartMesh, prometheus: str, pages: dict[int, subprocess.Popen[bytes]]
) -> None:
    http = (await start_mesh(prometheus_url=prometheus)).http("read")
    health = await once(
        http,
        "/monitoring/health",
        lambda body: body["healthy"] and {one["up"] for one in body["targets_summary"]} == {3, 1},
    )
    answer = documented("GET", "/api/system/monitoring/health")
    answer.holds(health)
    assert answer.empty_lists(health) == []
    assert health["prometheus_reachable"] is True
    assert "hidden" not in health["prometheus_url"]
    assert sorted(health["targets_summary"], key=lambda one: str(one["job"])) == [
        {"job": "atelier", "total": 3, "up": 3, "down": 0, "unknown": 0},
        {"job": "redis-exporter", "total": 1, "up": 1, "down": 0, "unknown": 0},
    ]
    assert health["issues"] == []
    collection = health["metrics_collection"]
    assert (collection["collecting"], collection["scrape_interval_seconds"]) == (True, 1)
    assert collection["total_series"] > 0
    assert collection["last_successful_scrape"]
    first, second, _, exporter = pages
    found = {one["name"]: one for one in health["exporters"]}
    assert found["redis-exporter"] == {
        "name": "redis-exporter",
        "status": "up",
        "endpoint": f"127.0.0.1:{exporter}",
        "last_scrape": found["redis-exporter"]["last_scrape"],
        "error": None,
    }
    assert found["redis-exporter"]["last_scrape"]
    # Tracked, and Prometheus does not know of them.
    for name, endpoint in (("json-exporter", "json-exporter:7979"), ("blackbox-exporter", "blackbox-exporter:9115")):
        absent = {"name": name, "status": "unknown", "endpoint": endpoint, "last_scrape": None, "error": None}
        assert found[name] == absent
    pages[first].kill()
    body = await once(http, "/monitoring/targets", lambda body: body.get("down") == 1)
    documented("GET", "/api/system/monitoring/targets").holds(body)
    assert (body["total"], body["up"], sorted(body["jobs"])) == (4, 3, ["atelier", "redis-exporter"])
    down = next(one for one in body["targets"] if one["health"] == "down")
    assert down["instance"] == f"127.0.0.1:{first}"
    assert down["last_error"]
    assert down["labels"]["job"] == "atelier"
    assert {one["last_error"] for one in body["targets"] if one["health"] == "up"} == {None}
    health = await once(http, "/monitoring/health", lambda body: bool(body["targets_summary"]))
    assert health["healthy"] is True, "more answer than do not"
    assert str(first) in health["issues"][0]
    pages[exporter].kill()
    body = await once(http, "/monitoring/targets", lambda body: body.get("down") == 2)
    assert body["up"] == 2
    health = await once(http, "/monitoring/health", lambda body: bool(body["targets_summary"]))
    assert health["healthy"] is False, "as many are down as are up"
    answer.holds(health)
    shown = next(one for one in health["exporters"] if one["name"] == "redis-exporter")
    assert (shown["status"], bool(shown["error"])) == ("down", True)
    assert any(f"127.0.0.1:{exporter}" in issue for issue in health["issues"])
    pages[second].kill()
    health = await once(
        http, "/monitoring/health", lambda body: sum(one["down"] for one in body["targets_summary"]) == 3
    )
    assert health["healthy"] is False


async def test_without_prometheus_health_says_so_and_targets_are_a_503(start_mesh: StartMesh) -> None:
    http = (await start_mesh(prometheus_url="http://127.0.0.1:1")).http("read")
    answer = await http.get("/monitoring/health")
    assert answer.status_code == 200
    body = answer.json()
    assert (body["healthy"], body["prometheus_reachable"], body["prometheus_url"]) == (
        False,
        False,
        "http://127.0.0.1:1",
    )
    assert (body["targets_summary"], body["exporters"]) == ([], [])
    assert body["issues"] == ["Prometheus does not answer"]
    documented("GET", "/api/system/monitoring/health").holds(body)
    answer = await http.get("/monitoring/targets")
    assert (answer.status_code, answer.json()) == (503, {"detail": "Prometheus does not answer"})
