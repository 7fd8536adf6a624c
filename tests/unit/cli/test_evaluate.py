"""`atelier evaluate` shows what was judged, and says which pictures were not."""

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from atelier_cli import terminal
from atelier_cli.client import Gateway
from atelier_cli.errors import CliError
from atelier_cli.main import app

JUDGED: dict[str, Any] = {
    "success": True,
    "detected_framing": "upper_body",
    "detected_view_angle": "front",
    "matches_expected": False,
    "number_of_people": 2,
    "anatomy_correct": None,
    "anatomy_issues": None,
    "detected_gender": None,
    "collage_detected": False,
    "confidence_summary": 0.875,
    "garment_description": "A red dress.",
    "subject_description": None,
    "scene_description": None,
    "error": None,
}
FAILED: dict[str, Any] = dict.fromkeys(JUDGED) | {"success": False, "error": "OpenAI failed."}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """What the command asks of the gateway; the picture "bad" is not evaluated."""
    requests: list[tuple[Any, dict[str, Any]]] = []

    def of(_folder: object, _tenant: str, _scopes: Iterable[str] = ()) -> Gateway:
        def answer(request: httpx.Request) -> httpx.Response:
            body = json.loads(request.content)
            requests.append((request.url, body))
            return httpx.Response(200, json=FAILED if base64.b64decode(body["image_data"]) == b"bad" else JUDGED)

        return Gateway("http://mesh", lambda: "t", transport=httpx.MockTransport(answer))

    monkeypatch.setattr(Gateway, "of", of)
    monkeypatch.setattr(terminal.out, "_width", 200)
    return requests


def test_what_was_judged_is_shown(asked: list[tuple[Any, dict[str, Any]]], tmp_path: Path) -> None:
    picture = tmp_path / "look.jpg"
    picture.write_bytes(b"good")
    command = [
        "evaluate",
        str(picture),
        "--framing",
        "close_up",
        "--view",
        "side",
        "--provider",
        "VERTEX",
        "--describe",
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    [(url, body)] = asked
    assert (url.path, dict(url.params)) == ("/api/v1/evaluation/", {"provider": "VERTEX"})
    assert body == {
        "image_data": base64.b64encode(b"good").decode(),
        "expected_framing": "close_up",
        "expected_view_angle": "side",
        "include_descriptions": True,
    }
    [line] = [line.split() for line in result.output.splitlines() if "upper_body" in line]
    assert line[-8:] == ["2", "upper_body", "front", "0.88", "no", "-", "-", "no"]
    assert "A red dress." in result.output


def test_json_has_the_whole_answer(asked: list[tuple[Any, dict[str, Any]]], tmp_path: Path) -> None:
    picture = tmp_path / "look.jpg"
    picture.write_bytes(b"good")
    result = CliRunner().invoke(app, ["evaluate", str(picture), "--json"])
    assert json.loads(result.output) == [{"file": str(picture), **JUDGED}]
    assert dict(asked[0][0].params) == {}


def test_a_picture_that_was_not_evaluated_is_a_failure(asked: list[tuple[Any, dict[str, Any]]], tmp_path: Path) -> None:
    for name in ("good", "bad"):
        (tmp_path / name).write_bytes(name.encode())
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "bad"), str(tmp_path / "good")])
    assert isinstance(result.exception, CliError)
    assert str(tmp_path / "bad") in str(result.exception)
    assert "OpenAI failed." in result.output
    assert len(asked) == 2


def test_a_file_that_is_not_there_asks_nobody(asked: list[tuple[Any, dict[str, Any]]], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "none.jpg")])
    assert isinstance(result.exception, CliError)
    assert not asked
