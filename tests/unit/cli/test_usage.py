import json
from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from atelier_cli import terminal
from atelier_cli.client import Gateway
from atelier_cli.errors import CliError
from atelier_cli.main import app

ROW: dict[str, Any] = {
    "day": "2026-11-01",
    "tenant": None,
    "task_type": None,
    "provider_type": None,
    "model": "large",
    "device": None,
    "attempts": 7,
    "failed_attempts": 2,
    "run_seconds": 30.0,
    "device_seconds": 21.5,
    "gpu_seconds": 20.0,
    "cpu_seconds": 1.5,
    "provider_calls": 3,
    "failed_provider_calls": 1,
    "provider_seconds": 12.25,
    "costs": {"USD": 0.5, "EUR": 2.0},
    "stored_bytes": 1_234_567,
    "stored_objects": 4,
}
ANSWER: dict[str, Any] = {
    "first_day": "2026-10-03",
    "last_day": "2026-11-01",
    "group_by": ["day", "model"],
    "rows": [ROW],
    "total": {**ROW, "attempts": 9},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the command asks of the gateway: the token's scopes, path, query."""
    requests: list[tuple[Any, ...]] = []

    def of(_folder: object, _tenant: str, scopes: Iterable[str] = ("read", "write")) -> Gateway:
        def answer(request: httpx.Request) -> httpx.Response:
            requests.append((tuple(scopes), request.url.path, request.url.params.multi_items()))
            if request.url.path.endswith(".csv"):
                return httpx.Response(200, text="day,attempts\r\n2026-11-01,7\r\n")
            return httpx.Response(200, json=ANSWER)

        return Gateway("http://mesh", lambda: "t", transport=httpx.MockTransport(answer))

    monkeypatch.setattr(Gateway, "of", of)
    monkeypatch.setattr(terminal.out, "_width", 200)
    return requests


def told(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["usage", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_table_has_a_line_for_each_row_and_the_total(asked: list[tuple[Any, ...]]) -> None:
    lines = told("--by", "day", "--by", "model", "--from", "2026-10-03", "--all").splitlines()
    figures = ["2", "20.0", "1.5", "3", "12.2", "2.00", "EUR,", "0.50", "USD", "1.23", "MB"]
    assert lines[1].split() == ["2026-11-01", "large", "7", *figures]
    assert lines[2].split() == ["total", "9", *figures]
    query = [("first_day", "2026-10-03"), ("group_by", "day"), ("group_by", "model")]
    assert asked == [(("read", "support"), "/api/v1/usage", query)]


def test_json_and_csv_are_printed_as_they_come(asked: list[tuple[Any, ...]]) -> None:
    assert json.loads(told("--json")) == ANSWER
    assert told("--csv", "--model", "large").splitlines() == ["day,attempts", "2026-11-01,7"]
    assert asked[1] == (("read",), "/api/v1/usage.csv", [("group_by", "day"), ("model", "large")])


def test_both_forms_at_once_are_refused(asked: list[tuple[Any, ...]]) -> None:
    result = CliRunner().invoke(app, ["usage", "--json", "--csv"])
    assert isinstance(result.exception, CliError)
    assert asked == []
