"""The client of the gateway survives a gateway that goes away, and says refusals in sentences."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from atelier_cli import client
from atelier_cli.client import Gateway, events
from atelier_cli.errors import CliError, ExitCode

Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_PAUSE_SECONDS", 0.0)


def gateway(handler: Handler, patience_seconds: float = 5.0) -> Gateway:
    return Gateway(
        "http://mesh", lambda: "t", transport=httpx.MockTransport(handler), patience_seconds=patience_seconds
    )


def sse(*messages: tuple[int, dict[str, object]]) -> httpx.Response:
    text = "".join(f": hello\n\nevent: task\nid: {version}\ndata: {json.dumps(body)}\n\n" for version, body in messages)
    return httpx.Response(200, text=text)


def test_create_is_sent_again_under_the_same_key() -> None:
    keys: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["idempotency-key"])
        if len(keys) == 1:
            raise httpx.ConnectError("refused")
        return httpx.Response(503) if len(keys) == 2 else httpx.Response(200, json={"id": "1"})

    assert gateway(answer).create({"prompt": "x"}) == {"id": "1"}
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_watch_goes_on_behind_the_last_event_seen() -> None:
    seen: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("last-event-id"))
        match len(seen):
            case 1:
                return sse((1, {"task": {"status": "PENDING"}}), (2, {"task": {"status": "EXECUTING"}, "step": 1}))
            case 2:
                raise httpx.ReadError("reset")
            case 3:
                return httpx.Response(200, text='event: error\ndata: {"status": 503, "detail": "away"}\n\n')
            case _:
                return sse((3, {"task": {"status": "COMPLETED"}, "final": True}))

    states = [event.task["status"] for event in gateway(answer).watch("1")]
    assert states == ["PENDING", "EXECUTING", "COMPLETED"]
    assert seen == [None, "2", "2", "2"]


def test_watch_of_a_task_that_waits_for_long_outlives_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("atelier_cli.client.time.monotonic", lambda: now[0])
    asked: list[httpx.Request] = []

    def waiting() -> Iterator[bytes]:
        for _ in range(10):
            now[0] += 4.0
            yield b": keep-alive\n\n"
        raise httpx.ReadError("reset")

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if len(asked) == 1:
            return httpx.Response(200, content=waiting())
        return sse((1, {"task": {"status": "COMPLETED"}, "final": True}))

    assert [event.task["status"] for event in gateway(answer).watch("1")] == ["COMPLETED"]


def test_watch_of_an_unknown_task_says_so() -> None:
    with pytest.raises(CliError, match="404: no such task"):
        list(gateway(lambda _: httpx.Response(404, json={"detail": "no such task"})).watch("1"))


def test_gateway_that_stays_away_is_told_as_not_running() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(CliError, match="http://mesh cannot be reached") as caught:
        gateway(answer, patience_seconds=0.0).task("1")
    assert caught.value.code is ExitCode.NOT_RUNNING


def test_validation_errors_name_the_field() -> None:
    detail = [{"loc": ["body", "width"], "msg": "must be at least 16", "type": "int32.gte"}]
    with pytest.raises(CliError, match=r"422: width: must be at least 16"):
        gateway(lambda _: httpx.Response(422, json={"detail": detail})).create({})


@pytest.mark.parametrize("status", [401, 403])
def test_refused_token_has_an_exit_code_of_its_own(status: int) -> None:
    with pytest.raises(CliError) as caught:
        gateway(lambda _: httpx.Response(status, json={"detail": "no"})).task("1")
    assert caught.value.code is ExitCode.NOT_ALLOWED


def test_download_leaves_no_half_file(tmp_path: Path) -> None:
    gateway(lambda _: httpx.Response(200, content=b"png")).download("generations/1/a.png", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"png"
    with pytest.raises(CliError, match="cannot be written"):
        gateway(lambda _: httpx.Response(200, content=b"png")).download("x", tmp_path / "none" / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_events_take_several_data_lines_and_pass_over_comments() -> None:
    lines: Iterator[str] = iter([": keep-alive", "", "id: 4", "data: a", "data:b", "retry: 10", "", "data: lost"])
    assert list(events(lines)) == [("4", "message", "a\nb")]


@pytest.mark.parametrize("content", [b"<html>", b"[]", b"7", b"\xff"])
def test_an_answer_that_is_no_gateways_is_told(content: bytes) -> None:
    with pytest.raises(CliError, match="no gateway of a mesh"):
        gateway(lambda _: httpx.Response(200, content=content)).task("1")


@pytest.mark.parametrize("text", ["", ".", ".."])
def test_an_identifier_that_is_none_is_told(text: str) -> None:
    with pytest.raises(CliError, match="no identifier"):
        gateway(lambda _: httpx.Response(200, json={})).task(text)


def test_an_identifier_stays_one_part_of_the_path() -> None:
    asked: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path)
        return httpx.Response(200, json={})

    gateway(answer).task("../a?b#c d")
    assert asked == [b"/api/v1/tasks/..%2Fa%3Fb%23c%20d"]
