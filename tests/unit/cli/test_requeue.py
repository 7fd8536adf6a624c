import json
from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from atelier_cli.client import Gateway
from atelier_cli.main import app

Asked = list[tuple[str, str, Any]]
DELIVERIES = [
    {"id": f"d{number}", "status": "FAILED", "created_at": f"20{number}-01-01T00:00:00Z"} for number in (20, 30)
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the commands ask of the gateway, with the scopes of each token."""
    requests: Asked = []

    def of(_folder: object, tenant: str, scopes: Iterable[str] = ()) -> Gateway:
        requests.append(("TOKEN", tenant, tuple(scopes)))

        def answer(request: httpx.Request) -> httpx.Response:
            body = json.loads(request.content) if request.content else dict(request.url.params)
            requests.append((request.method, request.url.path, body))
            if request.url.path.endswith("redeliver"):
                return httpx.Response(200, json={"id": request.url.path.split("/")[-2], "status": "PENDING"})
            if "deliveries" in request.url.path:
                return httpx.Response(200, json=DELIVERIES)
            made = [] if body.get("dry_run") else [{"task_id": "a", "new_task_id": "b"}]
            refused = [{"task_id": "x", "reason": "It is PENDING"}] if body.get("task_ids") == ["x"] else []
            return httpx.Response(200, json={"matched": 1, "requeued": made, "refused": refused})

        return Gateway("http://mesh", lambda: "t", transport=httpx.MockTransport(answer))

    monkeypatch.setattr(Gateway, "of", of)
    return requests


def run(*arguments: str, answer: str = "") -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["admin", "requeue", *arguments], input=answer)
    return result.exit_code, result.stdout, result.stderr


def test_tasks_are_counted_and_made_again_once_the_operator_agrees(asked: Asked) -> None:
    code, printed, told = run("--error", "PROVIDER", "--tenant", "acme", answer="y\n")
    assert (code, printed.splitlines()[-1]) == (0, "a b")
    assert "1 failed tasks to make again" in told
    [_, counted, made] = asked
    assert counted[2] == {"tenant": "acme", "error_category": "PROVIDER", "limit": 1000, "dry_run": True}
    assert made[2] == {"tenant": "acme", "error_category": "PROVIDER", "limit": 1000}


def test_nothing_is_done_without_a_yes(asked: Asked) -> None:
    code, printed, _ = run(answer="n\n")
    assert (code, "a b" in printed) == (0, False)
    assert len(asked) == 2
    assert run("--yes")[:2] == (0, "a b\n")


def test_what_is_refused_is_told_and_is_a_failure(asked: Asked) -> None:
    code, _, told = run("x", "--yes")
    assert code == 1
    assert "x: It is PENDING" in told


def test_deliveries_are_sent_again(asked: Asked) -> None:
    assert run("--deliveries", "--yes", "--since", "2025-01-01")[:2] == (0, "d30 PENDING\n")
    assert asked[0][2] == ("read", "write", "operator")
    assert run("--deliveries", "d7", "--yes")[:2] == (0, "d7 PENDING\n")
    asked.clear()
    run("--deliveries", "--tenant", "acme", "--yes")
    assert asked[0] == ("TOKEN", "acme", ("read", "write")), "a token of the tenant sees its own alone"


def test_identifiers_and_filters_exclude_each_other(asked: Asked) -> None:
    for wrong in (("x", "--tenant", "acme"), ("--deliveries", "--type", "NOOP")):
        with pytest.raises(Exception, match=r"not both|of tasks"):
            CliRunner().invoke(app, ["admin", "requeue", *wrong], catch_exceptions=False)
    assert asked == []
