"""One trace from a request to its webhook, through every process that worked for it."""

import uuid
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

from tests.collector import Collector, ReceivedSpan
from tests.e2e.harness import RunningMesh, ended_task, noop, until
from tests.e2e.hooks import taking
from tests.providers.called import CalledProviders

pytestmark = pytest.mark.timeout(600)

_CALLER = "1" * 16


def _create(mesh: RunningMesh, trace_id: str, *, sampled: bool, **fields: Any) -> str:
    with mesh.http("traced") as client:
        client.headers["traceparent"] = f"00-{trace_id}-{_CALLER}-{'01' if sampled else '00'}"
        answer = client.post("/api/v1/tasks/", json=noop(**fields))
        assert answer.status_code == 200, answer.text
        assert answer.headers["traceparent"].split("-")[1] == trace_id
        return str(ended_task(client, answer.json()["id"])["id"])


def test_a_request_its_call_its_attempt_and_its_webhook_are_one_tree(
    mesh: RunningMesh, collector: Collector, hook_port: int
) -> None:
    trace_id = uuid.uuid4().hex
    with taking(hook_port) as url:
        task_id = _create(mesh, trace_id, sampled=True, webhook_url=url)

        def arrived() -> dict[str, ReceivedSpan] | None:
            found = {one.span.name: one for one in collector.of(trace_id)}
            wanted = {"POST /api/v1/tasks/", "TasksService/CreateTask", "attempt NOOP", "child NOOP", "run", "webhook"}
            return found if wanted <= set(found) else None

        spans = until(arrived, "all spans have arrived", 60)
    request, rpc, attempt = (spans[name] for name in ("POST /api/v1/tasks/", "TasksService/CreateTask", "attempt NOOP"))
    child, run, webhook = (spans[name] for name in ("child NOOP", "run", "webhook"))
    assert (request.service, request.parent) == ("gateway", _CALLER)
    assert request.attributes["http.response.status_code"] == 200
    assert (rpc.service, rpc.parent) == ("tasks", request.id)
    assert rpc.attributes["rpc.response.status_code"] == "OK"
    # What waited in between bears a link to what created it.
    assert (attempt.service, attempt.parent, attempt.links) == ("inference", rpc.id, [rpc.id])
    assert (attempt.attributes["messaging.message.id"], attempt.attributes["atelier.attempt"]) == (task_id, 1)
    assert attempt.attributes["atelier.outcome"] == "completed"
    assert attempt.span.start_time_unix_nano >= rpc.span.start_time_unix_nano
    assert (child.service, child.parent) == ("inference", attempt.id)
    assert (run.service, run.parent) == ("inference", child.id)
    assert attempt.span.start_time_unix_nano <= child.span.start_time_unix_nano
    assert child.span.end_time_unix_nano <= attempt.span.end_time_unix_nano
    assert (webhook.service, webhook.parent, webhook.links) == ("tasks", rpc.id, [rpc.id])
    assert webhook.attributes["http.response.status_code"] == 204
    assert {one.span.status.code for one in spans.values()} == {0}


def test_the_request_to_a_provider_hangs_under_the_attempt_that_sent_it(
    device_mesh: RunningMesh, called: CalledProviders, collector: Collector
) -> None:
    trace_id = uuid.uuid4().hex
    before = set(called.fal.requests)
    task_id = _create(
        device_mesh,
        trace_id,
        sampled=True,
        task_type="GENERATION",
        prompt="a hat",
        width=64,
        height=48,
        provider_type="FAL_STANDARD",
        fal_app_id="fal-ai/flux/dev",
    )
    assert len(set(called.fal.requests) - before) == 1
    wanted = {"TasksService/CreateTask", "attempt GENERATION", "provider FAL_STANDARD"}

    def arrived() -> list[ReceivedSpan] | None:
        found = collector.of(trace_id)
        return found if wanted <= {one.span.name for one in found} else None

    found = until(arrived, "the provider's span has arrived")
    [rpc], [attempt], [provider] = ([one for one in found if one.span.name == name] for name in sorted(wanted))
    assert (attempt.parent, attempt.links) == (rpc.id, [rpc.id])
    assert (attempt.attributes["messaging.message.id"], attempt.attributes["atelier.attempt"]) == (task_id, 1)
    assert (provider.service, provider.parent) == (attempt.service, attempt.id)
    assert provider.attributes["atelier.provider"] == "FAL_STANDARD"
    assert provider.span.kind == OtlpSpan.SPAN_KIND_CLIENT
    assert provider.span.status.code == 0
    assert attempt.span.start_time_unix_nano <= provider.span.start_time_unix_nano
    assert provider.span.start_time_unix_nano < provider.span.end_time_unix_nano <= attempt.span.end_time_unix_nano


def test_a_trace_that_its_caller_does_not_record_is_not_recorded(mesh: RunningMesh, collector: Collector) -> None:
    silent, told = uuid.uuid4().hex, uuid.uuid4().hex
    _create(mesh, silent, sampled=False)
    _create(mesh, told, sampled=True)
    until(lambda: len(collector.of(told)) >= 4, "the other trace has arrived", 60)
    assert collector.of(silent) == []


def test_a_call_that_fails_says_so(mesh: RunningMesh, collector: Collector) -> None:
    trace_id = uuid.uuid4().hex
    with mesh.http("traced") as client:
        client.headers["traceparent"] = f"00-{trace_id}-{_CALLER}-01"
        assert client.get(f"/api/v1/tasks/{uuid.uuid4()}").status_code == 404

    def arrived() -> dict[str, ReceivedSpan] | None:
        found = {one.span.name: one for one in collector.of(trace_id)}
        return found if {"GET /api/v1/tasks/{task_id}", "TasksService/GetTask"} <= set(found) else None

    spans = until(arrived, "both spans have arrived", 60)
    assert spans["TasksService/GetTask"].attributes["rpc.response.status_code"] == "NOT_FOUND"
    # It is the caller's fault, and so no error of the server.
    assert {one.span.status.code for one in spans.values()} == {0}
