"""Fifty tasks are at a provider when their worker goes: each ends by the request that it had, and costs no retry."""

import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.bodies import photo
from tests.e2e.harness import RunningMesh, until
from tests.e2e.test_refine import store
from tests.providers.called import CalledProviders
from tests.providers.freepik import FreepikServer

pytestmark = pytest.mark.timeout(600)

_TASKS = 50


def created(client: httpx.Client) -> list[str]:
    body = {
        "task_type": "REFINE",
        "origin_instance": "e2e",
        "base_image_url": store(client, "base.png", photo(48)),
        "upscale_factor": 2,
        "provider_type": "FREEPIK_MAGNIFIC",
    }
    answers = [client.post("/api/v1/tasks/", json=body) for _ in range(_TASKS)]
    assert {answer.status_code for answer in answers} == {200}
    return [answer.json()["id"] for answer in answers]


@pytest.fixture
def endless(called: CalledProviders) -> Iterator[FreepikServer]:
    """Freepik, whose tasks do not end until a test says so."""
    called.freepik.looks = None
    yield called.freepik
    called.freepik.looks = 1


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGKILL, id="killed"), pytest.param(signal.SIGTERM, id="drained", marks=pytest.mark.long)],
)
def test_each_task_ends_by_the_request_that_it_had(
    device_mesh: RunningMesh, endless: FreepikServer, number: signal.Signals
) -> None:
    server = endless
    paid, before = server.paid, len(server.tasks)
    restarts = device_mesh.restarts("providers")
    with device_mesh.http(f"lost-{number.name.lower()}", timeout_seconds=60) as client:
        ids = created(client)
        until(
            lambda: all(one.looks for one in server.tasks[before:]) and len(server.tasks) == before + _TASKS, "all run"
        )
        device_mesh.kill("providers", number)
        device_mesh.wait_restarted("providers", restarts)
        server.looks = 1
        ended = device_mesh.wait_ended(client, _TASKS, 90)
        assert {task["status"] for task in ended} == {"COMPLETED"}
        assert {task["retry_count"] for task in ended} == {0}
        named = {task["id"]: task["service_task_id"] for task in ended}
        attempts: dict[str, list[Any]] = {name: device_mesh.attempts(client, name) for name in ids}
    assert sorted(named.values()) == sorted(one.id for one in server.tasks[before:])
    assert server.paid == paid + _TASKS
    assert min(len(found) for found in attempts.values()) == 2
