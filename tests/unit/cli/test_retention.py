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
AGES = [
    {"kind": "tasks", "tenant": "*", "days": 0, "set_at": None},
    {"kind": "tasks", "tenant": "acme", "days": 30, "set_at": "2026-11-27T10:00:00Z"},
]
LINE = {"tenant": "acme", "days": 30, "rows": 1200, "bytes": 5_000_000, "bytes_estimated": True}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the commands ask of the gateway."""
    requests: Asked = []

    def of(_folder: object, _tenant: str, scopes: Iterable[str] = ()) -> Gateway:
        assert "operator" in tuple(scopes)

        def answer(request: httpx.Request) -> httpx.Response:
            body = json.loads(request.content) if request.content else dict(request.url.params)
            requests.append((request.method, request.url.path, body))
            if "preview" in request.url.path:
                kind = request.url.params.get("kind", request.url.path.rpartition("/")[2])
                return httpx.Response(200, json={"lines": [LINE] if kind in {"tasks", "trainings"} else []})
            if request.method == "GET":
                return httpx.Response(200, json={"ages": AGES})
            age = {"kind": "tasks", "tenant": "*", "days": 0, "set_at": None}
            return httpx.Response(200, json={"age": age | {name: body[name] for name in age if name in body}})

        return Gateway("http://mesh", lambda: "t", transport=httpx.MockTransport(answer))

    monkeypatch.setattr(Gateway, "of", of)
    monkeypatch.setattr(terminal.out, "_width", 200)
    return requests


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["admin", "retention", *arguments])
    return result.exit_code, result.output


def test_ages_are_listed(asked: Asked) -> None:
    lines = run("list")[1].splitlines()
    assert lines[1].split() == ["tasks", "*", "for", "ever", "by", "the", "settings"]
    assert lines[2].split() == ["tasks", "acme", "30", "days", "2026-11-27T10:00:00Z"]
    assert json.loads(run("list", "--json")[1]) == AGES


def test_an_age_is_set_and_removed(asked: Asked) -> None:
    assert run("set", "tasks", "90") == (0, "tasks of all tenants: kept 90 days\n")
    assert run("set", "tasks", "0", "--tenant", "acme") == (0, "tasks of acme: kept for ever\n")
    assert run("remove", "tasks", "--tenant", "acme") == (0, "tasks of acme: kept for ever\n")
    assert asked == [
        ("POST", "/api/v1/retention", {"kind": "tasks", "tenant": "*", "days": 90}),
        ("POST", "/api/v1/retention", {"kind": "tasks", "tenant": "acme", "days": 0}),
        ("POST", "/api/v1/retention/remove", {"kind": "tasks", "tenant": "acme"}),
    ]


def test_a_dry_run_changes_nothing_and_asks_the_service_that_has_it(asked: Asked) -> None:
    line = ["acme", "30", "days", "1,200", "about", "5", "MB"]
    assert run("set", "tasks", "30", "--dry-run")[1].splitlines()[1].split() == ["tasks", *line]
    assert run("set", "trainings", "30", "--tenant", "acme", "--dry-run")[1].splitlines()[1].split()[0] == "trainings"
    assert run("set", "usage", "30", "--dry-run") == (0, "Nothing would be deleted.\n")
    assert [each[1].rpartition("/retention")[2] for each in asked] == ["/preview", "/preview/trainings", "/preview"]
    assert asked[0][2] == {"kind": "tasks", "days": "30"}
    assert asked[1][2] == {"days": "30", "tenant": "acme"}
    assert {method for method, _, _ in asked} == {"GET"}
    assert len(run("list", "--dry-run")[1].splitlines()) == 3
    assert len(asked) == 3 + 5


def test_an_unknown_kind_is_refused(asked: Asked) -> None:
    assert run("set", "cats", "30")[0] == 2
    assert run("set", "tasks", "-1")[0] == 2
    assert asked == []
