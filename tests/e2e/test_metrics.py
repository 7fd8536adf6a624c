"""What a running mesh tells Prometheus."""

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
from tests.e2e.scraping import scraping
from tests.unit.repository.rules import expressions, names_in

pytestmark = pytest.mark.timeout(600)

# Parts that a mesh on one machine, without a trainer, providers and cameras, does not load.
_UNUSED = (
    *("services/training/trainer/", "services/inference/providers/"),
    *("services/monitoring/marker/", "services/monitoring/capture/"),
)


# Panels that show something as soon as one task has ended.
_AFTER_ONE_TASK = {
    *("Requests by status", "Time of requests", "Slowest routes, 95 %", "Open connections"),
    *("Accepted, by type", "Ended, by outcome", "Queue wait, 95 %", "Run, 95 %", "Tasks that begin late"),
    *("gRPC calls, 95 %", "Calls in flight", "Memory", "Processes down", "Slots in use"),
    *("Slots of workers, by queue", "Queue wait, by type, 95 %", "Leases", "Rounds, by whether they found work"),
    *("Requests that share a transaction", "Attempts held and fetching", "Open sessions", "Attempts, by outcome"),
    *("Time of an attempt, by type and model", "Wait for a slot, 95 %", "Batch size", "Memory of models"),
    *("Oldest event that waits", "From the change to NATS, 95 %", "Events published"),
    *("Since the last success", "Time of a run, 95 %"),
}


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


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: prometheus)")
def test_a_real_prometheus_answers_every_panel(mesh: RunningMesh, tmp_path: Path) -> None:
    with scraping(mesh, tmp_path) as prometheus, mesh.http("measured") as client:

        def scraped() -> bool:
            return len(_results(prometheus, "up == 1")) >= 5

        until(scraped, "every process is scraped", 120)

        def measured() -> bool:
            # Rates need a change between two scrapes of the same process.
            ended_task(client, mesh.create(client, str(uuid.uuid4()))["id"])
            return bool(_results(prometheus, "atelier:queue_wait_seconds:p95_5m > 0"))

        until(measured, "the rules have run", 120, pause_seconds=1.0)

        def shown() -> bool:
            found = [
                (panel.title, [_results(prometheus, runnable(query)) for query, _ in panel.queries])
                for panel in panels()
            ]
            return {title for title, results in found if all(results)} >= _AFTER_ONE_TASK

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
    assert {name for name in missing if not name.startswith("atelier_provider_request_seconds")} == set()
