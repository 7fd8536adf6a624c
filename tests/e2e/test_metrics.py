"""What a running mesh tells Prometheus."""

import base64
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from scripts.dashboard_tables import panels, runnable
from scripts.metrics_page import declared
from tests.e2e.harness import RunningMesh, ended_task, until
from tests.e2e.hooks import taking
from tests.e2e.scraping import scraping
from tests.e2e.test_workflows import create, diamond, ended
from tests.unit.repository.rules import expressions, names_in

pytestmark = pytest.mark.timeout(600)

# Parts that a mesh on one machine, without a trainer, providers and cameras, does not load.
_UNUSED = (
    *("services/training/trainer/", "services/inference/providers/"),
    *("services/monitoring/marker/", "services/monitoring/capture/"),
)


# Panels that need not show anything after a little work: there is no trainer, no provider, no camera and no Kubernetes,
# nothing fails for good, nothing is refused, nobody listens, and nothing is old.
_QUIET = {
    *("Requests that fail", "Tasks that fail", "Runs that failed", "Restarts"),
    *("Children lost", "Children lost to them", "Connections closed", "Requests refused by a limit"),
    *("Requests, by provider", "Time of requests, 95 %", "How they fail", "Breakers that are not closed"),
    *("Rounds that passed waiting work over", "Models found in memory", "Models loaded"),
    *("Spans exported", "Spans dropped", "Waiting", "Waiting tasks, by lane"),
    *("Rows, because of their age", "Forgotten because of age"),
    *("Cordons", "Looks at the scheduler, by outcome", "Pods that bear a mark", "Changes of marks"),
    *("Cameras, by state", "Photos that were looked at", "Events, by level", "Summaries by a language model"),
    *("Clients that listen", "Conversations that ended"),
}
_PEOPLE = Path(__file__).parents[1] / "unit" / "modelkit" / "data" / "people"


def _pages(mesh: RunningMesh, **headers: str) -> dict[str, str]:
    """The Prometheus page of each process that has one."""
    ports = {role: port for role, port in mesh.record.ports.items() if role.startswith("metrics_")}
    running = {each.role for each in mesh.record.processes}
    return {
        role.removeprefix("metrics_"): httpx.get(f"http://127.0.0.1:{port}/metrics", headers=headers, timeout=60).text
        for role, port in ports.items()
        if role.removeprefix("metrics_") in running
    }


def test_a_running_mesh_shows_the_metrics_that_the_page_lists_and_no_other(mesh: RunningMesh) -> None:
    shown = set()
    for text in _pages(mesh).values():
        shown |= {
            name for name in re.findall(r"^# TYPE (atelier_\S+) ", text, re.MULTILINE) if not name.endswith("_created")
        }
    shown = {name for name in shown if not name.endswith("_created")}
    listed = {one.name: one.module for one in declared()}
    assert shown - set(listed) == set()
    assert {name for name in set(listed) - shown if not listed[name].startswith(_UNUSED)} == set()


def test_workers_alone_show_metrics_of_workers(mesh: RunningMesh) -> None:
    shown = {name for name, text in _pages(mesh).items() if "atelier_worker_session_open" in text}
    assert shown == {"worker"}, "another would be one that gets no work for ever"


def test_a_task_leaves_its_trace_in_the_histograms_that_it_passed(mesh: RunningMesh) -> None:
    trace_id = uuid.uuid4().hex
    with mesh.http("measured") as client:
        client.headers["traceparent"] = f"00-{trace_id}-{'1' * 16}-01"
        ended_task(client, mesh.create(client, str(uuid.uuid4()))["id"])

    def traced() -> set[str] | None:
        found = set()
        for text in _pages(mesh, accept="application/openmetrics-text; version=1.0.0").values():
            for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call] # the client has no types here
                exemplars = [sample.exemplar for sample in family.samples if sample.exemplar is not None]
                if any(one.labels.get("trace_id") == trace_id for one in exemplars):
                    found.add(family.name)
        wanted = {
            "atelier_http_request_seconds",
            "atelier_tasks_dispatch_seconds",
            "atelier_tasks_run_seconds",
            "atelier_worker_attempt_seconds",
        }
        return found if wanted <= found else None

    until(traced, "the trace is in all histograms", 60)


def test_events_are_measured_on_their_way(mesh: RunningMesh) -> None:
    with mesh.http("measured") as client:
        ended_task(client, mesh.create(client, str(uuid.uuid4()))["id"])

    def measured() -> bool:
        return 'atelier_outbox_lag_seconds_count{schema="tasks"}' in _pages(mesh)["tasks"]

    until(measured, "the relay has published")


def _results(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    answer = client.get("/query", params={"query": query})
    assert answer.status_code == 200, (query, answer.text)
    found: list[dict[str, Any]] = answer.json()["data"]["result"]
    return found


def _work(client: httpx.Client, mesh: RunningMesh, hook: str) -> None:
    """Have the mesh do a little of most that it does."""
    workflow = create(client, diamond("measured"))
    ended_task(client, mesh.create(client, str(uuid.uuid4()), webhook_url=hook, failures=1)["id"])
    assert client.get(f"/api/v1/tasks/{uuid.uuid4()}").status_code == 404
    photo = base64.b64encode((_PEOPLE / "aero.jpg").read_bytes()).decode()
    wanted = {"expected_framing": "upper_body", "expected_view_angle": "front"}
    judged = client.post("/api/v1/evaluation/", json={**wanted, "image_data": f"data:image/jpeg;base64,{photo}"})
    assert judged.status_code == 200, judged.text
    ended(client, workflow)


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: prometheus)")
def test_a_real_prometheus_answers_every_panel(mesh: RunningMesh, tmp_path: Path, hook_port: int) -> None:
    with scraping(mesh, tmp_path) as prometheus, mesh.http("measured") as client, taking(hook_port) as hook:

        def scraped() -> bool:
            return len(_results(prometheus, "up == 1")) >= 5

        until(scraped, "every process is scraped", 120)

        def measured() -> bool:
            # Rates need a change between two scrapes of the same process.
            _work(client, mesh, hook)
            return bool(_results(prometheus, "atelier:queue_wait_seconds:p95_5m > 0"))

        until(measured, "the rules have run", 120, pause_seconds=1.0)

        def shown() -> bool:
            _work(client, mesh, hook)
            found = [
                (panel.title, [_results(prometheus, runnable(query)) for query, _ in panel.queries])
                for panel in panels()
            ]
            empty = {title for title, _ in found} - {title for title, results in found if all(results)}
            return empty <= _QUIET

        until(shown, "the panels show what has happened", 120, pause_seconds=1)
        rules = prometheus.get("/rules").json()["data"]["groups"]
        assert [rule for group in rules for rule in group["rules"] if rule["health"] == "err"] == []
        online = _results(prometheus, "flower_worker_online")
        assert [(one["metric"]["worker"] != "", one["value"][1]) for one in online] == [(True, "1")]
        received = _results(prometheus, 'flower_events_total{type="task-received", task="atelier.NOOP"}')
        assert float(received[0]["value"][1]) >= 1


def test_rules_and_panels_ask_for_nothing_that_a_running_mesh_does_not_show(mesh: RunningMesh) -> None:
    shown = set()
    for text in _pages(mesh).values():
        for name, kind in re.findall(r"^# TYPE (atelier_\S+) (\w+)", text, re.MULTILINE):
            shown |= {f"{name}{part}" for part in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    rules = [*expressions("recording.yml"), *expressions("alerts.yml")]
    asked = {name for query in rules for name in names_in(query)}
    asked |= {name for panel in panels() for query, _ in panel.queries for name in names_in(query)}
    missing = {name for name in asked if name.startswith("atelier_")} - shown
    unused = tuple(one.name for one in declared() if one.module.startswith(_UNUSED))
    assert {name for name in missing if not name.startswith(unused)} == set()
