import time
from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from rich.live import Live
from typer.testing import CliRunner

from atelier_cli import terminal
from atelier_cli.client import Gateway
from atelier_cli.main import app

TASK: dict[str, Any] = {
    "id": "0197c0de-0000-7000-8000-000000000001",
    "task_type": "GENERATION",
    "provider_type": "LOCAL",
    "status": "EXECUTING",
    "progress": 50.0,
    "origin_tenant_id": "acme",
    "completed_at": None,
}
QUEUE: dict[str, Any] = {
    "name": "inference",
    "depth": 7,
    "active_workers": 1,
    "active_tasks": 2,
    "reserved_tasks": 1,
    "avg_wait_time_ms": 1250.0,
    "tasks_completed_last_hour": 31,
}
IDLE = {**QUEUE, "name": "fal", "depth": 0, "active_workers": 0, "active_tasks": 0, "tasks_completed_last_hour": 0}
WORKER: dict[str, Any] = {
    "name": "pod/0",
    "utilization_pct": 25.0,
    "active_tasks": 1,
    "concurrency": 4,
    "tasks_per_minute": 3.25,
    "tasks_completed_total": 90,
    "memory_mb": 512.4,
}
ANSWERS: dict[str, dict[str, Any]] = {
    "queues": {"queues": [IDLE, QUEUE], "total_pending": 7, "total_active": 2, "timestamp": "2026-11-27T18:00:00Z"},
    "workers": {"workers": [WORKER], "total_workers": 1, "total_active": 1, "total_capacity": 4},
    "EXECUTING": {"items": [TASK], "total": 3},
    "FAILED": {
        "items": [{**TASK, "id": "f" * 36, "status": "FAILED", "completed_at": "2026-11-27T17:59:58.5Z"}],
        "total": 9,
    },
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the command asks of the gateway: the token's scopes, path, query."""
    requests: list[tuple[Any, ...]] = []

    def of(_folder: object, _tenant: str, scopes: Iterable[str] = ("read", "write")) -> Gateway:
        def answer(request: httpx.Request) -> httpx.Response:
            requests.append((tuple(scopes), request.url.path, dict(request.url.params)))
            name = request.url.params.get("status") or request.url.path.rpartition("/")[2]
            return httpx.Response(200, json=ANSWERS[name])

        return Gateway("http://mesh", lambda: "t", transport=httpx.MockTransport(answer))

    monkeypatch.setattr(Gateway, "of", of)
    monkeypatch.setattr(terminal.out, "_width", 200)
    return requests


def told(*arguments: str) -> list[list[str]]:
    result = CliRunner().invoke(app, ["top", *arguments])
    assert result.exit_code == 0, result.output
    return [line.split() for line in result.output.splitlines() if line.strip()]


def test_one_look_shows_queues_workers_running_tasks_and_failures(asked: list[tuple[Any, ...]]) -> None:
    lines = told("--once", "--all", "--rows", "1")
    assert " ".join(lines[0]) == ("2026-11-27 18:00:00 7 waiting, 2 running, 9 failed; 1 workers, 1 of 4 slots busy")
    assert ["inference", "7", "2", "1", "1", "1.2", "31"] in lines
    assert not [line for line in lines if line[0] == "fal"]
    assert ["pod/0", "█████░░░░░░░░░░░░░░░", "1/4", "3.2", "90", "512"] in lines
    assert [TASK["id"], "GENERATION", "LOCAL", "acme", "██████████░░░░░░░░░░", "50", "%"] in lines
    assert ["and", "2", "more"] in lines
    assert ["f" * 36, "GENERATION", "LOCAL", "acme", "2026-11-27", "17:59:58"] in lines
    assert asked[2] == (("read", "support"), "/api/v1/monitoring/tasks", {"status": "EXECUTING", "page_size": "1"})


def test_a_live_screen_looks_again_until_it_is_interrupted(
    asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(terminal.out, "_force_terminal", True)
    monkeypatch.setattr(Live, "start", lambda *_args, **_more: None)
    monkeypatch.setattr(Live, "refresh", lambda _self: None)
    assert CliRunner().invoke(app, ["top", "--interval", "3"]).exit_code == 0
    assert pauses == [3.0, 3.0, 3.0]
    assert len(asked) == 3 * 4
