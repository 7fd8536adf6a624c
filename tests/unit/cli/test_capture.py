import json
from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from atelier_cli import terminal
from atelier_cli.client import Gateway
from atelier_cli.main import app

ALERT: dict[str, Any] = {
    "alert_id": "5a2f2a44-1111-4222-8333-444455556666",
    "severity": "critical",
    "state": "open",
    "created_at": "2026-01-31T12:00:00.000Z",
    "message": "gate [bold]: somebody",
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, dict[str, str]]]:
    """What the commands ask of the gateway: method, path, parameters."""
    requests: list[tuple[str, str, dict[str, str]]] = []

    def of(_folder: object, _tenant: str, scopes: Iterable[str] = ("read", "write")) -> Gateway:
        def answer(request: httpx.Request) -> httpx.Response:
            path = request.url.path.removeprefix("/api/capture")
            requests.append((request.method, path, dict(request.url.params)))
            items = [ALERT] if path == "/alerts" else []
            return httpx.Response(200, json={"items": items} if request.method == "GET" else ALERT)

        return Gateway("http://mesh", lambda: "t", transport=httpx.MockTransport(answer))

    monkeypatch.setattr(Gateway, "of", of)
    monkeypatch.setattr(terminal.out, "_width", 200)
    return requests


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["capture", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_lists_ask_for_what_is_wanted(asked: list[tuple[str, str, dict[str, str]]]) -> None:
    assert json.loads(run("cameras", "--json")) == []
    run("events", "--camera", "gate", "--limit", "3")
    shown = run("alerts", "--state", "open")
    assert "gate [bold]: somebody" in shown
    assert ALERT["alert_id"] in shown
    assert asked == [
        ("GET", "/cameras", {"limit": "100"}),
        ("GET", "/events", {"limit": "3", "camera_id": "gate"}),
        ("GET", "/alerts", {"limit": "20", "state": "open"}),
    ]


def test_an_alert_is_answered(asked: list[tuple[str, str, dict[str, str]]]) -> None:
    assert json.loads(run("acknowledge", ALERT["alert_id"])) == ALERT
    run("dismiss", "a/b")
    assert asked == [("POST", f"/alerts/{ALERT['alert_id']}/acknowledge", {}), ("POST", "/alerts/a/b/dismiss", {})]


def test_a_camera_is_removed(asked: list[tuple[str, str, dict[str, str]]]) -> None:
    run("remove", "gate")
    assert asked == [("DELETE", "/cameras/gate", {})]
