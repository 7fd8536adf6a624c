import json
from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from atelier_cli import terminal
from atelier_cli.client import Gateway
from atelier_cli.main import app

DELIVERY: dict[str, Any] = {
    "id": "5a2f2a44-1111-4222-8333-444455556666",
    "event_type": "task_created",
    "status": "FAILED",
    "attempt_count": 1,
    "failure": "GONE",
    "last_error": "The receiver answered 410",
    "url": "https://example.com/hook",
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the commands ask of the gateway: the token's scopes, method, path, parameters, body."""
    requests: list[tuple[Any, ...]] = []

    def of(_folder: object, _tenant: str, scopes: Iterable[str] = ("read", "write")) -> Gateway:
        def answer(request: httpx.Request) -> httpx.Response:
            body = json.loads(request.content) if request.content else None
            path = request.url.path.removeprefix("/api/v1/webhooks")
            requests.append((tuple(scopes), request.method, path, dict(request.url.params), body))
            if "secret" in path:
                return httpx.Response(200, json={"key": "whsec_" + "x" * 200, "created_at": "2026-11-22T18:00:00.000Z"})
            return httpx.Response(200, json=[DELIVERY] if path == "/deliveries" else DELIVERY)

        return Gateway("http://mesh", lambda: "t", transport=httpx.MockTransport(answer))

    monkeypatch.setattr(Gateway, "of", of)
    return requests


def told(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["webhook", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_list_shows_why_a_delivery_was_given_up(asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.out, "_width", 200)
    text = told("list", "--status", "FAILED", "--limit", "5")
    assert "GONE The receiver answered 410" in text
    assert DELIVERY["id"] in text
    parameters = {"status": "FAILED", "limit": "5", "skip": "0"}
    assert asked == [(("read", "write"), "GET", "/deliveries", parameters, None)]


def test_list_and_get_print_json(asked: list[tuple[Any, ...]]) -> None:
    assert json.loads(told("list", "--json")) == [DELIVERY]
    assert json.loads(told("get", str(DELIVERY["id"]))) == DELIVERY
    assert asked[1][1:3] == ("GET", f"/deliveries/{DELIVERY['id']}")


def test_redeliver_asks_for_it(asked: list[tuple[Any, ...]]) -> None:
    assert str(DELIVERY["id"]) in told("redeliver", str(DELIVERY["id"]))
    assert asked[0][1:3] == ("POST", f"/deliveries/{DELIVERY['id']}/redeliver")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), ("GET", "/secret", {}, None)),
        (("--rotate", "--overlap", "60"), ("POST", "/secret/rotate", {}, {"overlap_seconds": 60})),
    ],
)
def test_secret_is_printed_whole_and_alone(
    asked: list[tuple[Any, ...]], arguments: tuple[str, ...], expected: tuple[Any, ...]
) -> None:
    assert told("secret", *arguments) == "whsec_" + "x" * 200 + "\n"
    assert asked == [(("admin",), *expected)]
