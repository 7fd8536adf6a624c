"""FASHN_STANDARD against a server that speaks FASHN's protocol, and misbehaves: what comes of it, and what is paid."""

import asyncio
import base64
import contextlib
import io
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import fashn
import pytest
import pytest_asyncio
from atelier.tasks.v1.editing_pb2 import CreateEditingTask, EditingTaskPublic
from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_FASHN_STANDARD, TASK_TYPE_EDITING, ErrorCategory
from atelier.tasks.v1.providers_pb2 import FashnStandardConfig, ProviderConfig
from atelier.tasks.v1.service_requests_pb2 import (
    SERVICE_REQUEST_STATE_ACCEPTED,
    SERVICE_REQUEST_STATE_SENDING,
    ServiceRequest,
)
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from google.protobuf.struct_pb2 import Struct
from PIL import Image

from meshkit.images.checks import ImageChecks
from meshkit.worker.handlers import Output, TaskFailed
from services.inference.config import InferenceSettings
from services.inference.providers import fashn_standard, http, results
from services.inference.providers.kit import ProviderKit
from services.inference.providers.paid import Pacing
from tests.providers import base
from tests.providers.attempt import FakeAttempt
from tests.providers.base import Misbehaviour, Reply
from tests.providers.fashn import FashnServer, picture_of
from tests.providers.judging import Row, judge

pytestmark = pytest.mark.asyncio(loop_scope="module")

Make = Callable[..., fashn_standard.FashnEditing]
PERSON, GARMENT = (90, 120), (40, 40)
OUT_OF_CREDITS = Reply.of({"error": "OutOfCredits", "message": "No API credits remaining"}, 429)
RATE = Reply.of({"error": "RateLimitExceeded", "message": "Too many requests"}, 429, retry_after="7")
_GONE = Misbehaviour("gone", reply=Reply.of({"error": "NotFound", "message": "Not found"}, 404))
CONCURRENCY = Reply.of({"error": "ConcurrencyLimitExceeded", "message": "Too many predictions"}, 429)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at predictions, and ask again, in quick succession."""
    monkeypatch.setattr(http, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(results, "_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(fashn_standard, "_pacing", lambda interval: Pacing(first=0.01, last=0.01))


@pytest_asyncio.fixture(loop_scope="module")
async def server() -> AsyncIterator[FashnServer]:
    async with FashnServer() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def make(server: FashnServer, checks: ImageChecks) -> AsyncIterator[Make]:
    """Make a handler by further settings."""
    async with AsyncExitStack() as stack:
        yield lambda **settings: _handler(server, checks, stack, settings)


@pytest.fixture
def handler(make: Make) -> fashn_standard.FashnEditing:
    return make()


def _handler(
    server: FashnServer, checks: ImageChecks, stack: AsyncExitStack, settings: Mapping[str, Any]
) -> fashn_standard.FashnEditing:
    given = InferenceSettings(
        fashn_url=server.url,
        fashn_key=server.key,
        fetch_allow_private=(server.host,),
        provider_request_seconds=5.0,
        **settings,
    )
    kit = ProviderKit.from_settings(given, checks, stack)
    made = fashn_standard.handlers(kit)[TASK_TYPE_EDITING]
    assert isinstance(made, fashn_standard.FashnEditing)
    return made


def _attempt(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    references: int = 1,
    provider: FashnStandardConfig | None = None,
    **fields: Any,
) -> FakeAttempt:
    (folder / "out").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", PERSON, "teal").save(folder / "base.png")
    Image.new("RGBA", GARMENT, (200, 0, 0, 128)).save(folder / "reference.png")
    members = Struct()
    members.update(config or {})
    paths = [f"reference-{index}.png" for index in range(references)]
    task = Task(
        id="00000000-0000-4000-8000-000000000001",
        provider_type=PROVIDER_TYPE_FASHN_STANDARD,
        editing=EditingTaskPublic(base_image_path="base.png", reference_images=paths, seed=2**40 + 5),
        provider_config=ProviderConfig(fashn_standard=provider or FashnStandardConfig()),
        config=members,
    )
    spec = CreateTask(editing=CreateEditingTask(prompt="a red shirt", **{"width": 64, "height": 96, **fields}))
    inputs = {"base": folder / "base.png", **({"reference[0]": folder / "reference.png"} if references else {})}
    return FakeAttempt(folder / "out", spec, task, inputs)


def _picture(attempt: FakeAttempt) -> Image.Image:
    with Image.open(attempt.folder / "image.png") as picture:
        picture.load()
        return picture


async def test_a_garment_is_tried_on(handler: fashn_standard.FashnEditing, server: FashnServer, tmp_path: Path) -> None:
    attempt = _attempt(tmp_path)
    assert [(ref.name, ref.source) for ref in handler.inputs(attempt.spec, attempt.task)] == [
        ("base", "base.png"),
        ("reference[0]", "reference-0.png"),
    ]
    output = await handler.run(attempt)
    assert isinstance(output, Output)
    [file] = output.files
    assert (file.name, file.content_type, file.field) == ("image.png", "image/png", "result_image_path")
    assert (_picture(attempt).size, _picture(attempt).format) == ((64, 96), "PNG")
    [prediction] = server.predictions
    inputs = prediction.body["inputs"]
    assert prediction.body["model_name"] == "tryon-v1.6"
    assert set(inputs) == {"model_image", "garment_image", "seed", "output_format"}
    assert inputs["seed"] == 5  # FASHN's seeds have 32 bits
    assert (picture_of(inputs["model_image"]).size, picture_of(inputs["garment_image"]).size) == (PERSON, GARMENT)
    assert picture_of(inputs["garment_image"]).getpixel((3, 3)) != (200, 0, 0)  # over white
    assert attempt.states == ["SENDING", "ACCEPTED", "DONE"]
    [row] = attempt.rows.values()
    assert (row.service_task_id, row.target, row.cost, row.currency) == (prediction.id, "tryon-v1.6", 1.0, "credits")
    assert server.paid == 1


@pytest.mark.parametrize(
    ("config", "references", "names"),
    [
        ({"fashn": {"model": "tryon-max", "resolution": "2k"}}, 1, {"model_image", "product_image", "resolution"}),
        ({"fashn": {"model": "product-to-model"}}, 2, {"model_image", "product_image"}),
        ({"fashn": {"model": "model-swap"}}, 0, {"model_image"}),
        ({"fashn": {"model": "edit", "generation_mode": "fast"}}, 0, {"image", "generation_mode"}),
        ({"fashn": {"model": "edit"}}, 1, {"image", "image_context"}),
        ({"fashn": {"model": "background-change"}}, 0, {"image"}),
    ],
)
async def test_each_model_is_sent_what_it_calls_its_inputs(
    handler: fashn_standard.FashnEditing,
    server: FashnServer,
    tmp_path: Path,
    config: dict[str, Any],
    references: int,
    names: set[str],
) -> None:
    await handler.run(_attempt(tmp_path, config=config, references=references))
    [prediction] = server.predictions
    assert set(prediction.body["inputs"]) == names | {"prompt", "seed", "output_format"}
    assert prediction.body["inputs"]["prompt"] == "a red shirt"


async def test_high_pictures_are_reduced_and_low_ones_are_not_enlarged(
    handler: fashn_standard.FashnEditing, server: FashnServer, tmp_path: Path
) -> None:
    await handler.run(_attempt(tmp_path, provider=FashnStandardConfig(max_image_height=60)))
    inputs = server.predictions[0].body["inputs"]
    assert picture_of(inputs["model_image"]).size == (45, 60)
    assert picture_of(inputs["garment_image"]).size == GARMENT


async def test_the_installation_chooses_the_model_where_a_task_names_none(
    make: Make, server: FashnServer, tmp_path: Path
) -> None:
    await make(fashn_model="edit").run(_attempt(tmp_path, references=0))
    assert server.predictions[0].body["model_name"] == "edit"


async def test_a_picture_that_cannot_be_read_is_not_sent(
    handler: fashn_standard.FashnEditing, server: FashnServer, tmp_path: Path
) -> None:
    attempt = _attempt(tmp_path)
    attempt.inputs["base"].write_bytes(b"MZ" + bytes(64))
    with pytest.raises(TaskFailed, match="could not be read") as failed:
        await handler.run(attempt)
    assert failed.value.category == ErrorCategory.ERROR_CATEGORY_VALIDATION
    assert (server.asked, attempt.notes) == ([], [])


def _run(how: Misbehaviour) -> Callable[[FashnServer], object]:
    return lambda server: server.misbehave(how, method="POST")


def _answer(reply: Reply) -> Callable[[FashnServer], object]:
    return _run(Misbehaviour("reply", reply=reply))


def _ends(ending: str, name: str = "", message: str = "why", looks: int = 2) -> Callable[[FashnServer], object]:
    def arrange(server: FashnServer) -> None:
        server.ending, server.looks = ending, looks
        server.error = {"name": name, "message": message} if name else None

    return arrange


def _makes(output: bytes, typed: str = "image/png") -> Callable[[FashnServer], object]:
    def arrange(server: FashnServer) -> None:
        server.output, server.typed = output, typed

    return arrange


ROWS = [
    Row("rate", _answer(RATE), "RATE_LIMIT", True, "IGNORED", retry_after=7.0, says="Too many requests"),
    Row("concurrency", _answer(CONCURRENCY), "RATE_LIMIT", True, "IGNORED"),
    Row("out of credits", _answer(OUT_OF_CREDITS), "PROVIDER", False, "FATAL", says="credits"),
    Row("unauthorised", lambda server: setattr(server, "key", "changed-key"), "PROVIDER", False, "FATAL"),
    Row("402", _run(base.NO_CREDITS), "PROVIDER", False, "FATAL"),
    Row("403", _run(base.FORBIDDEN), "PROVIDER", False, "FATAL"),
    Row("bad request", _answer(Reply.of({"error": "BadRequest"}, 400)), "VALIDATION", False, "IGNORED"),
    Row("500", _answer(Reply.of({"error": "InternalServerError", "message": "x"}, 500)), "PROVIDER", True, "FAILURE"),
    Row("502", _run(base.BAD_GATEWAY), "PROVIDER", False, "FAILURE", state="UNKNOWN"),
    Row("slow", _run(base.SLOW), "PROVIDER", False, "FAILURE", state="UNKNOWN"),
    Row("cut before read", _run(base.CUT_UNREAD), "PROVIDER", False, "FAILURE", state="UNKNOWN"),
    Row("cut after read", _run(base.CUT_READ), "PROVIDER", False, "FAILURE", 1, state="UNKNOWN"),
    Row("cut in answer", _run(base.CUT_HALF), "PROVIDER", False, "FAILURE", 1, state="UNKNOWN"),
    Row("no JSON", _run(base.NO_JSON), "PROVIDER", False, "FAILURE", state="UNKNOWN"),
    Row("HTML", _run(base.HTML), "PROVIDER", False, "FAILURE", state="UNKNOWN"),
    Row("no name", _answer(Reply.of({"id": None, "error": None})), "PROVIDER", False, "FAILURE", state="UNKNOWN"),
    Row("not begun", _answer(Reply.of({"id": "", "error": "too busy"})), "PROVIDER", True, "FAILURE", says="too busy"),
    Row("redirect", _run(base.REDIRECT), "PROVIDER", True, "FAILURE"),
    Row("picture not loaded", _ends("failed", "ImageLoadError"), "VALIDATION", False, "IGNORED", 1, says="why"),
    Row("no pose", _ends("failed", "PoseError"), "VALIDATION", False, "IGNORED", 1),
    Row("wrong inputs", _ends("failed", "InputValidationError"), "VALIDATION", False, "IGNORED", 1),
    Row("moderation", _ends("failed", "ContentModerationError"), "CONTENT_POLICY", False, "IGNORED", 1, says="why"),
    Row("third party", _ends("failed", "ThirdPartyError"), "PROVIDER", False, "FAILURE", 1),
    Row("pipeline", _ends("failed", "PipelineError"), "PROVIDER", True, "FAILURE", 1),
    Row("new error", _ends("failed", "SomethingNew"), "PROVIDER", True, "FAILURE", 1),
    Row("no error", _ends("failed"), "PROVIDER", True, "FAILURE", 1),
    Row("tenth look", _ends("failed", "PipelineError", looks=10), "PROVIDER", True, "FAILURE", 1),
    Row("their time", _ends("time_out"), "TIMEOUT", True, "FAILURE", 1),
    Row("cancelled there", _ends("canceled"), "PROVIDER", False, "FAILURE", 1),
    Row("forgotten", lambda s: s.misbehave(_GONE, path="/v1/status/"), "PROVIDER", False, "FAILURE", 1),
    Row("no picture", _makes(b"<html>sorry</html>", "text/html"), "PROVIDER", True, "FAILURE", 1),
    Row("said to be a picture", _makes(b"MZ" + bytes(99)), "PROVIDER", True, "FAILURE", 1),
    Row("picture gone", lambda s: s.misbehave(_GONE, path="/cdn/"), "PROVIDER", True, "FAILURE", 1),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_a_misbehaviour_is_told_as_what_it_is_and_paid_once_at_most(
    handler: fashn_standard.FashnEditing, server: FashnServer, tmp_path: Path, row: Row
) -> None:
    row.arrange(server)
    attempt = _attempt(tmp_path)
    with pytest.raises(TaskFailed) as failed:
        async with asyncio.timeout(60):
            await handler.run(attempt)
    judge(row, failed.value, attempt, server)
    assert attempt.open_requests == []


async def test_nothing_that_listens_is_asked_again_by_another_attempt(
    handler: fashn_standard.FashnEditing, server: FashnServer, tmp_path: Path
) -> None:
    attempt = _attempt(tmp_path)
    await server.__aexit__()
    with pytest.raises(TaskFailed) as failed:
        await handler.run(attempt)
    assert (failed.value.category, failed.value.retryable) == (ErrorCategory.ERROR_CATEGORY_PROVIDER, True)
    assert attempt.states == ["SENDING", "FAILED"]
    await server.__aenter__()


@pytest.mark.parametrize("how", [base.BROKEN, base.NO_JSON, base.HTML, base.CUT_READ, base.TOO_MANY], ids=str)
async def test_a_look_that_fails_does_not_end_a_prediction(
    handler: fashn_standard.FashnEditing, server: FashnServer, tmp_path: Path, how: Misbehaviour
) -> None:
    quick = how if how.reply is None else replace(how, reply=replace(how.reply, headers={"content-type": "text/html"}))
    server.misbehave(quick, method="GET", path="/v1/status/", times=5)
    attempt = _attempt(tmp_path)
    await handler.run(attempt)
    assert (server.paid, attempt.states[-1], _picture(attempt).size) == (1, "DONE", (64, 96))


@pytest.mark.parametrize(("longest", "settings"), [(1, {}), (86400, {"provider_wait_seconds": 0.3})])
async def test_a_prediction_that_never_ends_ends_at_the_longest_wait_and_is_not_made_again(
    make: Make, server: FashnServer, tmp_path: Path, longest: int, settings: dict[str, Any]
) -> None:
    server.looks = None
    with pytest.raises(TaskFailed) as failed:
        await make(**settings).run(_attempt(tmp_path, provider=FashnStandardConfig(max_wait_seconds=longest)))
    # FASHN cannot be told to stop: what came of another attempt would be paid as well.
    assert (failed.value.category, failed.value.retryable) == (ErrorCategory.ERROR_CATEGORY_TIMEOUT, False)
    assert server.paid == 1


async def _taken_by(handler: fashn_standard.FashnEditing, server: FashnServer, attempt: FakeAttempt) -> None:
    """Have FASHN take a prediction that does not end, and let the worker die."""
    server.looks = None
    running = asyncio.ensure_future(handler.run(attempt))
    async with asyncio.timeout(60):
        while not (server.predictions and server.predictions[0].looks > 2):  # noqa: ASYNC110 -- the server tells nobody
            await asyncio.sleep(0.01)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_another_attempt_goes_on_with_the_same_prediction(
    handler: fashn_standard.FashnEditing, server: FashnServer, tmp_path: Path
) -> None:
    first = _attempt(tmp_path)
    await _taken_by(handler, server, first)
    assert [row.state for row in first.rows.values()] == [SERVICE_REQUEST_STATE_ACCEPTED]
    server.looks = 1
    second = first.again()
    await handler.run(second)
    assert (server.paid, second.states) == (1, ["DONE"])
    assert second.notes[-1].service_task_id == server.predictions[0].id


async def test_a_result_that_could_not_be_fetched_is_fetched_by_the_next_attempt(
    handler: fashn_standard.FashnEditing, server: FashnServer, tmp_path: Path
) -> None:
    server.misbehave(base.BROKEN, path="/cdn/", times=3)
    first = _attempt(tmp_path)
    with pytest.raises(TaskFailed) as failed:
        await handler.run(first)
    assert failed.value.retryable
    await handler.run(second := first.again())
    assert (server.paid, second.states) == (1, ["DONE"])


def _open(state: int, **fields: Any) -> ServiceRequest:
    row = ServiceRequest(
        id="00000000-0000-4000-8000-0000000000aa",
        provider_type=PROVIDER_TYPE_FASHN_STANDARD,
        operation="edit",
        state=state,  # type: ignore[arg-type] # one of the enum's numbers
        **fields,
    )
    row.sent_at.GetCurrentTime()
    return row


async def test_a_request_of_unknown_outcome_is_not_sent_again(
    handler: fashn_standard.FashnEditing, server: FashnServer, tmp_path: Path
) -> None:
    attempt = _attempt(tmp_path)
    row = _open(SERVICE_REQUEST_STATE_SENDING)
    attempt.rows[row.id] = row
    with pytest.raises(TaskFailed) as failed:
        await handler.run(attempt)
    assert (failed.value.category, failed.value.retryable) == (ErrorCategory.ERROR_CATEGORY_PROVIDER, False)
    assert (server.asked, attempt.states) == ([], ["UNKNOWN"])


async def test_the_longest_wait_counts_from_the_first_attempt(
    handler: fashn_standard.FashnEditing, server: FashnServer, tmp_path: Path
) -> None:
    await _taken_by(handler, server, attempt := _attempt(tmp_path, provider=FashnStandardConfig(max_wait_seconds=600)))
    [row] = attempt.rows.values()
    row.sent_at.FromSeconds(row.sent_at.seconds - 601)
    with pytest.raises(TaskFailed) as failed:
        async with asyncio.timeout(60):
            await handler.run(attempt.again())
    assert failed.value.category == ErrorCategory.ERROR_CATEGORY_TIMEOUT
    assert server.paid == 1


async def test_the_official_client_agrees_with_the_server(server: FashnServer) -> None:
    out = io.BytesIO()
    Image.new("RGB", PERSON).save(out, "PNG")
    person = f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
    async with fashn.AsyncFashn(api_key=server.key, base_url=server.url, max_retries=0) as client:
        ended = await client.predictions.subscribe(
            model_name="tryon-v1.6", inputs={"model_image": person, "garment_image": person}, poll_interval=10
        )
        assert (ended.status, ended.credits_used, ended.error) == ("completed", 1, None)
        assert ended.output is not None
        assert ended.output[0].startswith(server.url)
        server.ending, server.error = "failed", {"name": "ContentModerationError", "message": "no"}
        failed = await client.predictions.subscribe(
            model_name="edit", inputs={"image": person, "prompt": "blue"}, poll_interval=10
        )
        assert failed.error is not None
        assert (failed.status, failed.error.name) == ("failed", "ContentModerationError")
        with pytest.raises(fashn.BadRequestError, match="garment_image"):
            await client.predictions.run(model_name="tryon-v1.6", inputs={"model_image": person})  # type: ignore[call-overload] # refused
        server.refusal = 429, "OutOfCredits", "No API credits remaining"
        with pytest.raises(fashn.RateLimitError, match="OutOfCredits"):
            await client.predictions.run(model_name="edit", inputs={"image": person, "prompt": "blue"})
        with pytest.raises(fashn.NotFoundError):
            await client.predictions.status("nothing")
    stranger = fashn.AsyncFashn(api_key="another", base_url=server.url, max_retries=0)  # pragma: allowlist secret
    async with stranger:
        with pytest.raises(fashn.AuthenticationError):
            await stranger.predictions.status("nothing")
