"""What a running mesh tells Prometheus."""

import re
import uuid

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from scripts.metrics_page import declared
from tests.e2e.harness import RunningMesh, ended_task, until

pytestmark = pytest.mark.timeout(180)

# Parts that a mesh without a trainer and without providers does not load.
_UNUSED = ("services/training/trainer/", "services/inference/providers/")


def _pages(mesh: RunningMesh, **headers: str) -> dict[str, str]:
    """The Prometheus page of each process that has one."""
    ports = {role: port for role, port in mesh.record.ports.items() if role.startswith("metrics_")}
    running = {each.role for each in mesh.record.processes}
    return {
        role.removeprefix("metrics_"): httpx.get(f"http://127.0.0.1:{port}/metrics", headers=headers).text
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

    until(traced, "the trace is in all histograms", 20)


def test_events_are_measured_on_their_way(mesh: RunningMesh) -> None:
    with mesh.http("measured") as client:
        ended_task(client, mesh.create(client, str(uuid.uuid4()))["id"])

    def measured() -> bool:
        return 'atelier_outbox_lag_seconds_count{schema="tasks"}' in _pages(mesh)["tasks"]

    until(measured, "the relay has published")
