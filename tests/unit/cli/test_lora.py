import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from atelier_cli import terminal
from atelier_cli.client import Gateway
from atelier_cli.main import app

LORA: dict[str, Any] = {
    "partial_path": "styles/ink.safetensors",
    "bin_path": "/data/bin/models/loras/styles/ink_v2.safetensors",
    "trigger_word": "zorblat",
    "base_model": "garments",
    "rank": 16,
    "layout": "kohya",
    "file_size": 1_500_000,
    "shared": True,
}
ADMIN = ("read", "write", "admin")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the commands ask of the gateway: the token's scopes, method, path, parameters, content."""
    requests: list[tuple[Any, ...]] = []

    def of(_folder: object, _tenant: str, scopes: Iterable[str] = ("read", "write")) -> Gateway:
        def answer(request: httpx.Request) -> httpx.Response:
            content = request.read()
            body = json.loads(content) if content.startswith(b"{") else content
            requests.append((tuple(scopes), request.method, request.url.path, dict(request.url.params), body))
            return httpx.Response(200, json=[LORA] if request.url.path == "/api/v1/lora/" else LORA)

        return Gateway("http://mesh", lambda: "t", transport=httpx.MockTransport(answer))

    monkeypatch.setattr(Gateway, "of", of)
    return requests


def told(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["lora", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_list_shows_what_a_lora_is_and_who_may_use_it(
    asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal.out, "_width", 200)
    text = told("list", "--entity-type", "styles")
    assert text.splitlines()[1].split() == [
        "styles/ink.safetensors", "zorblat", "garments", "16", "kohya", "1.5", "yes",
    ]  # fmt: skip
    assert asked[0][1:4] == ("GET", "/api/v1/lora/", {"entity_type": "styles", "skip": "0", "limit": "100"})
    assert "styles/ink_v2.safetensors" in told("list", "--deleted")
    assert asked[1][3]["deleted"] == "true"


def test_list_and_show_print_json(asked: list[tuple[Any, ...]]) -> None:
    assert json.loads(told("list", "--json")) == [LORA]
    assert json.loads(told("show", "styles/ink.safetensors")) == LORA
    assert asked[1][1:3] == ("GET", "/api/v1/lora/styles/ink.safetensors")


@pytest.mark.parametrize(
    ("arguments", "path", "scopes", "safe"),
    [
        ((), "/api/v1/lora/upload", ("read", "write"), b"true"),
        (("--shared", "--exact-name"), "/api/v1/admin/lora/upload", ADMIN, b"false"),
    ],
)
def test_upload_sends_the_file_and_prints_its_path(
    asked: list[tuple[Any, ...]],
    tmp_path: Path,
    arguments: tuple[str, ...],
    path: str,
    scopes: tuple[str, ...],
    safe: bytes,
) -> None:
    file = tmp_path / "ink.safetensors"
    file.write_bytes(b"content of a LoRA")
    assert told("upload", str(file), "--entity-type", "styles", *arguments) == "styles/ink.safetensors\n"
    [(had, method, to, _, body)] = asked
    assert (had, method, to) == (scopes, "POST", path)
    for part in (b'name="file"; filename="ink.safetensors"', b"content of a LoRA", b"\r\n\r\nstyles\r\n", safe):
        assert part in body


def test_upload_of_nothing_is_wrong_use(asked: list[tuple[Any, ...]], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["lora", "upload", str(tmp_path / "none.safetensors")])
    assert result.exit_code != 0
    assert asked == []


def test_delete_and_restore_ask_as_an_administrator(asked: list[tuple[Any, ...]]) -> None:
    assert told("delete", "styles/ink.safetensors") == "styles/ink_v2.safetensors\n"
    assert told("restore", "styles/ink_v2.safetensors") == "styles/ink.safetensors\n"
    assert asked == [
        (ADMIN, "DELETE", "/api/v1/admin/lora", {}, {"partial_path": "styles/ink.safetensors"}),
        (ADMIN, "POST", "/api/v1/admin/lora/restore", {}, {"bin_path": "styles/ink_v2.safetensors"}),
    ]
