"""FREEPIK_MAGNIFIC and FREEPIK_MAGNIFIC_PRECISION against a server that speaks Freepik's protocol, and misbehaves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from atelier.tasks.v1.enums_pb2 import (
    PROVIDER_TYPE_FREEPIK_MAGNIFIC,
    PROVIDER_TYPE_FREEPIK_MAGNIFIC_PRECISION,
    TASK_TYPE_REFINE,
    ErrorCategory,
)
from atelier.tasks.v1.providers_pb2 import FreepikMagnificConfig, ProviderConfig
from atelier.tasks.v1.refine_pb2 import CreateRefineTask, RefineTaskPublic
from atelier.tasks.v1.service_requests_pb2 import (
    SERVICE_REQUEST_STATE_ACCEPTED,
    SERVICE_REQUEST_STATE_SENDING,
    ServiceRequest,
)
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from PIL import Image

from meshkit.images.checks import ImageChecks
from meshkit.worker.handlers import CallHandler, TaskFailed
from services.inference.config import InferenceSettings
from services.inference.providers import freepik_magnific, freepik_magnific_precision, http, paid, results
from services.inference.providers.kit import ProviderKit
from tests.providers import base
from tests.providers.attempt import FakeAttempt
from tests.providers.base import Misbehaviour, Reply
from tests.providers.freepik import CREATIVE, PRECISION, PRECISION_V2, FreepikServer, picture_of
from tests.providers.judging import Row, judge

pytestmark = pytest.mark.asyncio(loop_scope="module")

Make = Callable[..., CallHandler]
SIZE = (40, 30)
RATE = Reply.of({"message": "You have been rate limited"}, 429, retry_after="11")
_GONE = Misbehaviour("gone", reply=Reply.of({"message": "Not found"}, 404))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at tasks, and ask again, in quick succession."""
    monkeypatch.setattr(http, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(results, "_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(paid.Pacing, "pause", lambda self, looks: 0.01)


@pytest_asyncio.fixture(loop_scope="module")
async def server() -> AsyncIterator[FreepikServer]:
    async with FreepikServer() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def make(server: FreepikServer, checks: ImageChecks) -> AsyncIterator[Make]:
    """Make a handler of one of both modules, by further settings."""
    async with AsyncExitStack() as stack:
        yield lambda module=freepik_magnific, **settings: _handler(module, server, checks, stack, settings)


@pytest.fixture
def handler(make: Make) -> CallHandler:
    return make()


def _handler(
    module: Any, server: FreepikServer, checks: ImageChecks, stack: AsyncExitStack, settings: Mapping[str, Any]
) -> CallHandler:
    given = InferenceSettings(
        **{
            "freepik_url": server.url,
            "freepik_key": server.key,
            "fetch_allow_private": (server.host,),
            "provider_request_seconds": 1.0,
            **settings,
        }
    )
    made: Mapping[int, CallHandler] = module.handlers(ProviderKit.from_settings(given, checks, stack))
    return made[TASK_TYPE_REFINE]


def _attempt(folder: Path, *, mode: str = "RGB", size: tuple[int, int] = SIZE, **fields: Any) -> FakeAttempt:
    (folder / "out").mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", size, "teal")
    if mode == "RGBA":
        alpha = Image.new("L", size, 128)
        alpha.paste(0, (0, 0, 10, 10))
        picture.putalpha(alpha)
    picture.save(folder / "base.png")
    task = Task(
        id="00000000-0000-4000-8000-000000000001",
        refine=RefineTaskPublic(base_image_path="base.png"),
        provider_config=ProviderConfig(freepik_magnific=FreepikMagnificConfig(hdr=3)),
    )
    return FakeAttempt(
        folder / "out", CreateTask(refine=CreateRefineTask(**fields)), task, {"base": folder / "base.png"}
    )


def _picture(attempt: FakeAttempt) -> Image.Image:
    with Image.open(attempt.folder / "image.png") as picture:
        picture.load()
        return picture


@pytest.mark.parametrize(
    ("fields", "scale", "size"),
    [
        ({"upscale_factor": 2}, "2x", (80, 60)),
        ({"upscale_factor": 8}, "8x", (320, 240)),
        ({"upscale_factor": 2.5}, "4x", (100, 75)),
        ({"target_width": 33}, "2x", (33, 25)),
        ({"target_width": 70, "target_height": 90}, "4x", (70, 90)),
    ],
)
async def test_the_result_has_exactly_the_size_asked_for(
    handler: CallHandler, server: FreepikServer, tmp_path: Path, fields: dict[str, Any], scale: str, size: Any
) -> None:
    attempt = _attempt(tmp_path, upscale_prompt="a face", **fields)
    assert [(ref.name, ref.source) for ref in handler.inputs(attempt.spec, attempt.task)] == [("base", "base.png")]
    output = await handler.run(attempt)
    assert [(file.name, file.field) for file in output.files] == [("image.png", "result_image_path")]
    assert (_picture(attempt).size, _picture(attempt).format) == (size, "PNG")
    [task] = server.tasks
    assert task.path == CREATIVE
    assert (task.body["scale_factor"], task.body["hdr"], task.body["prompt"]) == (scale, 3, "a face")
    assert picture_of(task.body["image"]).size == SIZE
    assert attempt.states == ["SENDING", "ACCEPTED", "DONE"]
    [row] = attempt.rows.values()
    assert (row.service_task_id, row.target, row.HasField("cost")) == (task.id, "image-upscaler", False)
    assert server.paid == 1


async def test_transparency_is_scaled_too_and_what_it_hides_is_not_sent(
    handler: CallHandler, server: FreepikServer, tmp_path: Path
) -> None:
    attempt = _attempt(tmp_path, mode="RGBA", upscale_factor=2)
    await handler.run(attempt)
    sent, made = picture_of(server.tasks[0].body["image"]), _picture(attempt)
    assert sent.mode == "RGB"
    assert (sent.getpixel((0, 0)), sent.getpixel((20, 20))) == ((255, 255, 255), (0, 128, 128))
    assert (made.mode, made.size) == ("RGBA", (80, 60))
    assert (made.getpixel((60, 40)), made.getchannel("A").getpixel((0, 0))) == ((0, 128, 128, 128), 0)


async def test_nothing_is_sent_where_nothing_is_to_be_enlarged(
    handler: CallHandler, server: FreepikServer, tmp_path: Path
) -> None:
    attempt = _attempt(tmp_path, upscale_enabled=False)
    await handler.run(attempt)
    assert (_picture(attempt).size, server.asked, attempt.notes) == (SIZE, [], [])


async def test_a_result_that_would_be_too_large_costs_nothing(
    handler: CallHandler, server: FreepikServer, tmp_path: Path
) -> None:
    attempt = _attempt(tmp_path, size=(2600, 2500), upscale_factor=2)
    with pytest.raises(TaskFailed, match="million pixels") as failed:
        await handler.run(attempt)
    assert failed.value.category == ErrorCategory.ERROR_CATEGORY_VALIDATION
    assert (server.asked, attempt.notes) == ([], [])


@pytest.mark.parametrize(
    ("settings", "path", "factor"),
    [
        ({}, PRECISION, None),
        ({"freepik_precision_version": "2", "freepik_precision_flavor": "sublime"}, PRECISION_V2, 3),
    ],
)
async def test_the_precise_upscaler_reaches_every_factor(
    make: Make, server: FreepikServer, tmp_path: Path, settings: dict[str, Any], path: str, factor: int | None
) -> None:
    attempt = _attempt(tmp_path, upscale_factor=3)
    await make(freepik_magnific_precision, **settings).run(attempt)
    [task] = server.tasks
    assert (task.path, task.body.get("scale_factor"), task.body["sharpen"]) == (path, factor, 50)
    assert task.body.get("flavor") == settings.get("freepik_precision_flavor")
    assert _picture(attempt).size == (120, 90)
    [row] = attempt.rows.values()
    assert row.provider_type == PROVIDER_TYPE_FREEPIK_MAGNIFIC_PRECISION
    assert row.target == path.rpartition("/")[2]


async def test_a_picture_that_cannot_be_read_is_not_sent(
    handler: CallHandler, server: FreepikServer, tmp_path: Path
) -> None:
    attempt = _attempt(tmp_path, upscale_factor=2)
    attempt.inputs["base"].write_bytes(b"MZ" + bytes(64))
    with pytest.raises(TaskFailed, match="could not be read") as failed:
        await handler.run(attempt)
    assert failed.value.category == ErrorCategory.ERROR_CATEGORY_VALIDATION
    assert (server.asked, attempt.notes) == ([], [])


def _create(how: Misbehaviour) -> Callable[[FreepikServer], object]:
    return lambda server: server.misbehave(how, method="POST")


def _answer(reply: Reply) -> Callable[[FreepikServer], object]:
    return _create(Misbehaviour("reply", reply=reply))


def _set(**attributes: Any) -> Callable[[FreepikServer], object]:
    def arrange(server: FreepikServer) -> None:
        for name, value in attributes.items():
            setattr(server, name, value)

    return arrange


_PROBLEM = {"message": "m", "invalid_params": [{"name": "image", "reason": "Parameter 'image' is not valid"}]}

ROWS = [
    Row("rate", _answer(RATE), "RATE_LIMIT", True, "IGNORED", retry_after=11.0, says="rate limited"),
    Row("402", _create(base.NO_CREDITS), "PROVIDER", False, "FATAL"),
    Row("403", _create(base.FORBIDDEN), "PROVIDER", False, "FATAL"),
    Row("401", _set(key="changed-key"), "PROVIDER", False, "FATAL", says="Freepik denies this installation access"),
    Row("400", _answer(Reply.of({"problem": _PROBLEM}, 400)), "VALIDATION", False, "IGNORED", says="'image' is not"),
    Row("500", _set(refusal=(500, "Internal Server Error")), "PROVIDER", True, "FAILURE", says="Internal"),
    Row("503", _set(refusal=(503, "Service Unavailable")), "PROVIDER", True, "FAILURE"),
    Row("502", _create(base.BAD_GATEWAY), "PROVIDER", False, "FAILURE", state="UNKNOWN"),
    Row("slow", _create(base.SLOW), "PROVIDER", False, "FAILURE", state="UNKNOWN"),
    Row("cut before read", _create(base.CUT_UNREAD), "PROVIDER", False, "FAILURE", state="UNKNOWN"),
    Row("cut after read", _create(base.CUT_READ), "PROVIDER", False, "FAILURE", 1, state="UNKNOWN"),
    Row("cut in answer", _create(base.CUT_HALF), "PROVIDER", False, "FAILURE", 1, state="UNKNOWN"),
    Row("no JSON", _create(base.NO_JSON), "PROVIDER", False, "FAILURE", state="UNKNOWN"),
    Row("HTML", _create(base.HTML), "PROVIDER", False, "FAILURE", state="UNKNOWN"),
    Row("no name", _answer(Reply.of({"data": {"status": "CREATED"}})), "PROVIDER", False, "FAILURE", state="UNKNOWN"),
    Row("failed", _set(ending="FAILED"), "PROVIDER", True, "FAILURE", 1),
    Row("tenth look", _set(ending="FAILED", looks=10), "PROVIDER", True, "FAILURE", 1),
    Row("forgotten", lambda server: server.misbehave(_GONE, method="GET"), "PROVIDER", False, "FAILURE", 1),
    Row("no picture", _set(output=b"<html>sorry</html>", typed="text/html"), "PROVIDER", True, "FAILURE", 1),
    Row("said to be a picture", _set(output=b"MZ" + bytes(99)), "PROVIDER", True, "FAILURE", 1),
    Row("picture gone", lambda server: server.misbehave(_GONE, path="/generated/"), "PROVIDER", True, "FAILURE", 1),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_a_misbehaviour_is_told_as_what_it_is_and_paid_once_at_most(
    handler: CallHandler, server: FreepikServer, tmp_path: Path, row: Row
) -> None:
    row.arrange(server)
    attempt = _attempt(tmp_path, upscale_factor=2)
    with pytest.raises(TaskFailed) as failed:
        async with asyncio.timeout(60):
            await handler.run(attempt)
    judge(row, failed.value, attempt, server)


async def test_a_task_that_never_ends_ends_at_the_longest_wait_and_is_not_made_again(
    make: Make, server: FreepikServer, tmp_path: Path
) -> None:
    server.looks = None
    with pytest.raises(TaskFailed) as failed:
        await make(provider_wait_seconds=0.3).run(_attempt(tmp_path, upscale_factor=2))
    # Freepik cannot be told to stop: what came of another attempt would be paid as well.
    assert (failed.value.category, failed.value.retryable) == (ErrorCategory.ERROR_CATEGORY_TIMEOUT, False)
    assert server.paid == 1


async def test_another_attempt_goes_on_with_the_same_task_where_it_was_sent(
    make: Make, server: FreepikServer, tmp_path: Path
) -> None:
    server.looks = None
    first = _attempt(tmp_path, upscale_factor=2)
    running = asyncio.ensure_future(make(freepik_magnific_precision).run(first))
    async with asyncio.timeout(60):
        while not (server.tasks and server.tasks[0].looks > 2):  # noqa: ASYNC110 -- the server tells nobody
            await asyncio.sleep(0.01)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert [row.state for row in first.rows.values()] == [SERVICE_REQUEST_STATE_ACCEPTED]
    server.looks = 1
    second = first.again()
    await make(freepik_magnific_precision, freepik_precision_version="2").run(second)  # the settings have changed
    assert (server.paid, second.states, server.tasks[0].path) == (1, ["DONE"], PRECISION)


async def test_a_request_of_unknown_outcome_is_not_sent_again(
    handler: CallHandler, server: FreepikServer, tmp_path: Path
) -> None:
    attempt = _attempt(tmp_path, upscale_factor=2)
    row = ServiceRequest(
        id="00000000-0000-4000-8000-0000000000aa",
        provider_type=PROVIDER_TYPE_FREEPIK_MAGNIFIC,
        operation="upscale",
        state=SERVICE_REQUEST_STATE_SENDING,
    )
    attempt.rows[row.id] = row
    with pytest.raises(TaskFailed) as failed:
        await handler.run(attempt)
    assert (failed.value.category, failed.value.retryable) == (ErrorCategory.ERROR_CATEGORY_PROVIDER, False)
    assert (server.asked, attempt.states) == ([], ["UNKNOWN"])
