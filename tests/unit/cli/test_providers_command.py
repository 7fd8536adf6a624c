import json
from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from atelier_cli import terminal
from atelier_cli.client import Gateway
from atelier_cli.main import app

GATE: dict[str, Any] = {
    "key": "house/painter",
    "state": "open",
    "running": 3,
    "total_calls": 41,
    "rejected_calls": 7,
    "concurrency": 10,
    "rate": 2.5,
    "blocked_until": None,
}
PROVIDERS = [
    {"provider_type": "LOCAL", "served": True, "gates": []},
    {"provider_type": "FAL_STANDARD", "served": False, "gates": [GATE]},
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the commands ask of the gateway: the token's scopes, method, path, body."""
    requests: list[tuple[Any, ...]] = []

    def of(_folder: object, _tenant: str, scopes: Iterable[str] = ("read", "write")) -> Gateway:
        def answer(request: httpx.Request) -> httpx.Response:
            body = json.loads(request.content) if request.content else None
            requests.append((tuple(scopes), request.method, request.url.path, body))
            if request.method == "POST":
                return httpx.Response(200, json={"previous_state": "open", "new_state": "closed"})
            return httpx.Response(200, json={"providers": PROVIDERS})

        return Gateway("http://mesh", lambda: "t", transport=httpx.MockTransport(answer))

    monkeypatch.setattr(Gateway, "of", of)
    return requests


def told(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["providers", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_list_shows_breakers_calls_and_limits(asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.out, "_width", 200)
    lines = told().splitlines()
    assert lines[1].split() == ["LOCAL", "yes"]
    assert lines[3].split() == ["house/painter", "open", "3", "41", "7", "10", "at", "once,", "2.5", "a", "second"]
    assert asked == [(("read", "operator"), "GET", "/api/v1/providers", None)]
    assert json.loads(told("--json")) == PROVIDERS


def test_reset_names_the_application(asked: list[tuple[Any, ...]]) -> None:
    assert "open -> closed" in told("reset", "FAL_STANDARD/house/painter")
    told("reset", "VERTEX")
    assert [body for *_, body in asked] == [
        {"provider_type": "FAL_STANDARD", "key": "house/painter"},
        {"provider_type": "VERTEX", "key": ""},
    ]
