"""fal's providers against a server of its protocol: what is sent, what is made of what comes back, and bad days."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fal_client
import httpx
import pytest
from atelier.tasks.v1.enums_pb2 import (
    TASK_TYPE_GENERATION,
    ErrorCategory,
    TaskType,
)
from atelier.tasks.v1.service_requests_pb2 import ServiceRequestEffect
from fal_client import client as fal_module

from meshkit.images.checks import ImageChecks
from meshkit.worker.handlers import CallHandler, TaskFailed
from services.inference.providers import fal_standard
from services.inference.providers.config import ProviderSettings
from services.inference.providers.kit import ProviderKit
from tests.providers.base import (
    BAD_GATEWAY,
    BROKEN,
    CUT_HALF,
    CUT_READ,
    CUT_UNREAD,
    FORBIDDEN,
    HTML,
    NO_CREDITS,
    NO_JSON,
    TOO_MANY,
    UNAUTHORISED,
    Misbehaviour,
    Reply,
    png,
)
from tests.providers.fal import FalServer, model_error, request_error
from tests.providers.fal_tasks import APP, drawing, made

Handlers = Mapping[TaskType.ValueType, CallHandler]

# One loop for all: the children that judge pictures are started once.
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_picture_is_drawn(fal: FalServer, fal_handlers: Handlers, tmp_path: Path) -> None:
    attempt = drawing(tmp_path, guidance=3, prompt="not this", num_images=4, fal_webhook="https://evil.example")
    output = await fal_handlers[TASK_TYPE_GENERATION].run(attempt)
    [request] = fal.requests.values()
    assert request.application == APP
    assert request.arguments == {
        "prompt": "a hat",
        "seed": 7,
        "image_size": {"width": 48, "height": 32},
        "num_images": 1,
        "output_format": "png",
        "guidance": 3,
    }
    assert '"guidance": 3,' in fal.asked[0].body.decode()
    assert (request.webhook, request.headers["x-fal-no-retry"]) == ("", "1")
    assert output.result.generation.seed == 7
    assert [file.field for file in output.files] == ["result_image_path"]
    assert made(tmp_path).size == (48, 32)
    assert attempt.states == ["SENDING", "ACCEPTED", "DONE"]
    assert (6, 0) in attempt.phases
    [row] = attempt.rows.values()
    assert (row.target, row.service_task_id) == (APP, request.id)


@dataclass(frozen=True)
class Row:
    """A bad day: when, how, and what comes of it."""

    name: str
    how: Misbehaviour | None
    category: str
    retryable: bool
    effect: str
    submits: int
    method: str = "POST"
    path: str = ""
    application: Callable[[FalServer], Reply] | None = None
    retry_after: float | None = None
    states: str = "FAILED"

    def __str__(self) -> str:
        return self.name


def answers(reply: Reply) -> Callable[[FalServer], Reply]:
    return lambda _: reply


def picture(data: bytes, content_type: str = "image/png", **more: Any) -> Callable[[FalServer], Reply]:
    return lambda fal: Reply.of({"images": [{"url": fal.serve_file("x", data, content_type)}], **more})


TABLE = [
    # The submit.
    Row("429_header", TOO_MANY, "RATE_LIMIT", True, "IGNORED", 0, retry_after=7.0),
    Row("402", NO_CREDITS, "PROVIDER", False, "FATAL", 0),
    Row("403", FORBIDDEN, "PROVIDER", False, "FATAL", 0),
    Row("401", UNAUTHORISED, "PROVIDER", False, "FATAL", 0),
    Row("500", BROKEN, "PROVIDER", True, "FAILURE", 0),
    Row("502", BAD_GATEWAY, "PROVIDER", False, "FAILURE", 0, states="UNKNOWN"),
    Row("cut_unread", CUT_UNREAD, "PROVIDER", False, "FAILURE", 0, states="UNKNOWN"),
    Row("cut_read", CUT_READ, "PROVIDER", False, "FAILURE", 1, states="UNKNOWN"),
    Row("cut_half", CUT_HALF, "PROVIDER", False, "FAILURE", 1, states="UNKNOWN"),
    Row("slow", Misbehaviour("slow", slow=9.0), "PROVIDER", False, "FAILURE", 0, states="UNKNOWN"),
    Row("no_json", NO_JSON, "PROVIDER", False, "FAILURE", 0, states="UNKNOWN"),
    Row("html", HTML, "PROVIDER", False, "FAILURE", 0, states="UNKNOWN"),
    Row(
        "no_request_id",
        Misbehaviour("x", reply=Reply.of({"request_id": "../../other"})),
        "PROVIDER",
        False,
        "FAILURE",
        0,
        states="UNKNOWN",
    ),
    Row(
        "422",
        Misbehaviour("x", reply=model_error("missing", "Field required")),
        "VALIDATION",
        False,
        "IGNORED",
        0,
    ),
    Row(
        "422_content",
        Misbehaviour("x", reply=model_error("content_policy_violation", "no")),
        "CONTENT_POLICY",
        False,
        "IGNORED",
        0,
    ),
    # What the application answers.
    Row(
        "application_422",
        None,
        "VALIDATION",
        False,
        "IGNORED",
        1,
        application=answers(model_error("value_error", "too many steps")),
    ),
    Row(
        "application_content",
        None,
        "CONTENT_POLICY",
        False,
        "IGNORED",
        1,
        application=answers(model_error("content_policy_violation", "flagged")),
    ),
    Row(
        "application_broke",
        None,
        "PROVIDER",
        True,
        "FAILURE",
        1,
        application=answers(request_error("runner_disconnected", "Runner disconnected", 503)),
    ),
    Row(
        "application_broke_for_good",
        None,
        "PROVIDER",
        False,
        "FAILURE",
        1,
        application=answers(model_error("internal_server_error", "boom", 500, x_fal_retryable="false")),
    ),
    Row(
        "application_timeout",
        None,
        "TIMEOUT",
        True,
        "FAILURE",
        1,
        application=answers(request_error("request_timeout", "Request timed out", 504)),
    ),
    Row("nothing_made", None, "PROVIDER", True, "FAILURE", 1, application=answers(Reply.of({"images": []}))),
    Row("no_object", None, "PROVIDER", True, "FAILURE", 1, application=answers(Reply.of([1, 2]))),
    Row("no_image", None, "PROVIDER", True, "FAILURE", 1, application=picture(b"GIF89a no")),
    Row("html_image", None, "PROVIDER", True, "FAILURE", 1, application=picture(b"<html>", "text/html")),
    Row(
        "inner_address",
        None,
        "PROVIDER",
        True,
        "FAILURE",
        1,
        application=answers(Reply.of({"image": {"url": "http://169.254.169.254/latest"}})),
    ),
    Row(
        "refusal_as_200",
        None,
        "CONTENT_POLICY",
        False,
        "IGNORED",
        1,
        application=picture(png(), has_nsfw_concepts=[True]),
    ),
]


@pytest.mark.parametrize("row", TABLE, ids=str)
async def test_a_bad_day(fal: FalServer, fal_handlers: Handlers, tmp_path: Path, row: Row) -> None:
    attempt = drawing(tmp_path)
    if row.how is not None:
        fal.misbehave(row.how, method=row.method, path=row.path)
    if row.application is not None:
        answering = row.application
        fal.application = lambda name, arguments: answering(fal)
    async with asyncio.timeout(60):
        with pytest.raises(TaskFailed) as failed:
            await fal_handlers[TASK_TYPE_GENERATION].run(attempt)
    failure = failed.value
    assert ErrorCategory.Name(failure.category) == f"ERROR_CATEGORY_{row.category}"
    assert (failure.retryable, failure.retry_after) == (row.retryable, row.retry_after)
    assert (fal.submits, fal.count("POST")) == (row.submits, 0 if row.name == "cut_unread" else 1)
    [end] = attempt.rows.values()
    assert ServiceRequestEffect.Name(end.effect) == f"SERVICE_REQUEST_EFFECT_{row.effect}"
    assert attempt.states[-1] == row.states
    assert "fal-tests" not in failure.message


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/status$"), ("GET", "requests/[^/]*$")],
    ids=["look", "fetch"],
)
@pytest.mark.parametrize("how", [BROKEN, TOO_MANY, CUT_HALF], ids=str)
async def test_what_costs_nothing_is_asked_again(
    fal: FalServer, fal_handlers: Handlers, tmp_path: Path, how: Misbehaviour, method: str, path: str
) -> None:
    if how is TOO_MANY:
        how = Misbehaviour("x", reply=Reply.of({"detail": "slow down"}, 429, retry_after="0"))
    fal.misbehave(how, method=method, path=path, times=2)
    await fal_handlers[TASK_TYPE_GENERATION].run(drawing(tmp_path))
    assert fal.submits == 1


@pytest.mark.parametrize("quirk", ["foreign_addresses", "empty_202"])
async def test_quirks_are_taken(fal: FalServer, fal_handlers: Handlers, tmp_path: Path, quirk: str) -> None:
    setattr(fal, quirk, True)
    fal.running_looks = 3
    await fal_handlers[TASK_TYPE_GENERATION].run(drawing(tmp_path))
    assert fal.submits == 1


async def test_a_job_that_fails_after_ten_looks_ends(fal: FalServer, fal_handlers: Handlers, tmp_path: Path) -> None:
    fal.queue_looks, fal.running_looks = 4, 6
    fal.application = lambda *_: request_error("runner_server_error", "boom", 500)
    with pytest.raises(TaskFailed):
        await fal_handlers[TASK_TYPE_GENERATION].run(drawing(tmp_path))
    [request] = fal.requests.values()
    assert request.looks >= 11


@pytest.mark.parametrize("cancellable", [True, False])
async def test_a_job_that_never_ends_is_called_off_in_time(
    fal: FalServer, fal_kit: ProviderKit, fal_handlers: Handlers, tmp_path: Path, cancellable: bool
) -> None:
    fal.never, fal.cancellable = True, cancellable
    attempt = drawing(tmp_path)
    object.__setattr__(fal_kit.settings, "provider_wait_seconds", 0.5)
    with pytest.raises(TaskFailed) as failed:
        await fal_handlers[TASK_TYPE_GENERATION].run(attempt)
    assert failed.value.category == ErrorCategory.ERROR_CATEGORY_TIMEOUT
    assert failed.value.retryable is cancellable
    assert (fal.submits, fal.count("PUT")) == (1, 1)


async def test_a_cancelled_task_is_called_off_at_fal(fal: FalServer, fal_handlers: Handlers, tmp_path: Path) -> None:
    fal.never, attempt = True, drawing(tmp_path)
    running = asyncio.create_task(fal_handlers[TASK_TYPE_GENERATION].run(attempt))
    await attempt.until("ACCEPTED")
    attempt.called_off = True
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    [request] = fal.requests.values()
    assert request.cancelled


async def test_another_attempt_goes_on_with_the_same_request(
    fal: FalServer, fal_handlers: Handlers, tmp_path: Path
) -> None:
    fal.never, attempt = True, drawing(tmp_path)
    running = asyncio.create_task(fal_handlers[TASK_TYPE_GENERATION].run(attempt))
    await attempt.until("ACCEPTED")
    running.cancel()  # the worker drains
    await asyncio.wait([running])
    [request] = fal.requests.values()
    assert not request.cancelled
    fal.never = False
    await fal_handlers[TASK_TYPE_GENERATION].run(attempt.again())
    assert fal.submits == 1


async def test_a_request_of_an_unknown_name_is_not_waited_for(
    fal: FalServer, fal_handlers: Handlers, tmp_path: Path
) -> None:
    attempt = drawing(tmp_path)
    await fal_handlers[TASK_TYPE_GENERATION].run(attempt)
    fal.requests.clear()
    with pytest.raises(TaskFailed) as failed:
        await fal_handlers[TASK_TYPE_GENERATION].run(attempt.again())
    assert not failed.value.retryable
    assert fal.submits == 0


@pytest.mark.parametrize(("text", "sent"), [("x" * 10, 0), ("../../evil", 0), ("a/b?fal_webhook=https://e", 0)])
async def test_what_is_no_application_is_not_called(
    fal: FalServer, fal_handlers: Handlers, tmp_path: Path, text: str, sent: int
) -> None:
    attempt = drawing(tmp_path)
    attempt.spec.provider_config.fal_standard.fal_app_id = text
    with pytest.raises(TaskFailed):
        await fal_handlers[TASK_TYPE_GENERATION].run(attempt)
    assert len(fal.asked) == sent


async def test_the_official_client_agrees_with_the_server(fal: FalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fal_module, "QUEUE_URL_FORMAT", f"{fal.url}/")
    client = fal_client.AsyncClient(key="fal-tests")
    # Its own connections accept https alone, and have a spare domain.
    plain = httpx.AsyncClient(headers={"Authorization": "Key fal-tests"}, timeout=10)
    client.__dict__["_client"] = _ready(plain)
    handle = await client.submit(APP, {"image_size": {"width": 9, "height": 9}, "seed": 1}, webhook_url="https://h/x")
    seen = [type(await handle.status()).__name__ for _ in range(2)]
    assert seen == ["Queued", "InProgress"]
    found = await handle.get(interval=0.01)
    assert found["images"][0]["url"].startswith(fal.url)
    assert isinstance(await handle.status(), fal_client.Completed)
    second = await client.submit(APP, {})
    await second.cancel()
    assert [request.cancelled for request in fal.requests.values()] == [False, True]
    assert [request.webhook for request in fal.requests.values()] == ["https://h/x", ""]
    await plain.aclose()


class _ready:  # noqa: N801 -- reads as what it does
    """Awaits to a value, as often as it is asked."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __await__(self) -> Any:
        yield from ()
        return self._value


async def test_without_a_key_there_is_no_provider() -> None:
    settings = ProviderSettings()
    kit = ProviderKit.from_settings(settings, ImageChecks(), AsyncExitStack())
    with pytest.raises(ValueError, match="ATELIER_FAL_KEY"):
        fal_standard.handlers(kit)
