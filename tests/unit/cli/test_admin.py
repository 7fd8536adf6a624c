import json
from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from atelier_cli import terminal
from atelier_cli.client import Gateway
from atelier_cli.main import app

Asked = list[tuple[str, str, Any]]


def pool(held: int = 0, by: str | None = "operator") -> dict[str, Any]:
    return {"name": "pod/fal", "queues": ["fal"], "slots": 4, "held": held, "draining": False, "cordoned_by": by}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the commands ask of the gateway, whose worker has an attempt less at each look."""
    requests: Asked = []
    held = [2]

    def of(_folder: object, _tenant: str, scopes: Iterable[str] = ()) -> Gateway:
        assert "operator" in tuple(scopes)

        def answer(request: httpx.Request) -> httpx.Response:
            body = json.loads(request.content) if request.content else None
            requests.append((request.method, request.url.path, body))
            held[0] -= 1
            return httpx.Response(200, json={"pools": [pool(held[0] + 1)]})

        return Gateway("http://mesh", lambda: "t", transport=httpx.MockTransport(answer))

    monkeypatch.setattr(Gateway, "of", of)
    monkeypatch.setattr("atelier_cli.commands.admin._ASK_SECONDS", 0.0)
    return requests


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["admin", *arguments])
    return result.exit_code, result.output


def test_workers_are_listed_with_their_state(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.out, "_width", 200)
    lines = run("workers")[1].splitlines()
    assert lines[1].split() == ["pod/fal", "fal", "2", "4", "cordoned", "by", "an", "operator"]
    assert asked == [("GET", "/api/v1/scaling/workers", None)]


def test_a_worker_is_cordoned_and_uncordoned_by_name(asked: Asked) -> None:
    assert run("cordon", "pod") == (0, "pod: cordoned, 2 under way\n")
    assert run("uncordon", "pod/fal") == (0, "pod/fal: takes work\n")
    assert asked == [
        ("POST", "/api/v1/scaling/cordon", {"worker": "pod"}),
        ("POST", "/api/v1/scaling/uncordon", {"worker": "pod/fal"}),
    ]


def test_drain_waits_until_the_worker_holds_nothing(asked: Asked) -> None:
    assert run("drain", "pod") == (0, "pod: drained\n")
    assert [path.rpartition("/")[2] for _, path, _ in asked] == ["cordon", "workers", "workers"]


def test_drain_says_what_is_left_when_its_time_is_over(asked: Asked) -> None:
    with pytest.raises(Exception, match="pod still has 2 under way; it stays cordoned"):
        CliRunner().invoke(app, ["admin", "drain", "pod", "--timeout", "0"], catch_exceptions=False)
    assert len(asked) == 1
