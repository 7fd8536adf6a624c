"""fal's providers against a server of its protocol: what is sent, what is made of what comes back, and bad days."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import fal_client
import httpx
import numpy as np
import pytest
import pytest_asyncio
from atelier.tasks.v1.detail_enhancer_pb2 import CreateDetailEnhancerTask
from atelier.tasks.v1.enums_pb2 import (
    PROVIDER_TYPE_FAL_STANDARD,
    TASK_TYPE_BACKGROUND_REMOVE,
    TASK_TYPE_DETAIL_ENHANCER,
    TASK_TYPE_EDITING,
    TASK_TYPE_EXPERIMENTAL_FAL,
    TASK_TYPE_GENERATION,
    TASK_TYPE_REFINE,
    TASK_TYPE_VIDEO_GENERATION,
    ErrorCategory,
    TaskType,
)
from atelier.tasks.v1.generation_pb2 import CreateGenerationTask, GenerationTaskPublic
from atelier.tasks.v1.providers_pb2 import FalShootifyRefinerConfig, FalStandardConfig, ProviderConfig
from atelier.tasks.v1.refine_pb2 import CreateRefineTask, RefineTaskPublic
from atelier.tasks.v1.service_requests_pb2 import ServiceRequestEffect
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from av.video.stream import VideoStream
from fal_client import client as fal_module
from google.protobuf.json_format import ParseDict
from PIL import Image

from meshkit.images.checks import ImageChecks
from meshkit.worker.handlers import CallHandler, Output, TaskFailed
from services.inference.providers import fal_garment_fixer, fal_shootify_refiner, fal_standard
from services.inference.providers.config import ProviderSettings
from services.inference.providers.kit import ProviderKit
from tests.providers.attempt import FakeAttempt
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
    jpeg,
    png,
)
from tests.providers.fal import FalServer, model_error, request_error

APP = "fal-ai/flux/dev"
Handlers = Mapping[TaskType.ValueType, CallHandler]

# One loop for all: the children that judge pictures are started once.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def checks() -> AsyncIterator[ImageChecks]:
    made = ImageChecks()
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def server() -> AsyncIterator[FalServer]:
    async with FalServer() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def kit(server: FalServer, checks: ImageChecks) -> AsyncIterator[ProviderKit]:
    async with AsyncExitStack() as stack:
        settings = ProviderSettings(
            fal_key="fal-tests",
            fal_url=server.url,
            fetch_allow_private=(server.host,),
            provider_poll_seconds=0.02,
            provider_request_seconds=1.0,
            provider_result_seconds=2.0,
            provider_wait_seconds=5.0,
        )
        yield ProviderKit.from_settings(settings, checks, stack)


@pytest.fixture
def handlers(kit: ProviderKit) -> Handlers:
    return fal_standard.handlers(kit)


def config(**more: Any) -> ProviderConfig:
    settings = FalStandardConfig(fal_app_id=APP)
    ParseDict({"additional_static_params": more}, settings)
    return ProviderConfig(fal_standard=settings)


def drawing(tmp_path: Path, **static: Any) -> FakeAttempt:
    spec = CreateTask(
        provider_type=PROVIDER_TYPE_FAL_STANDARD,
        provider_config=config(**static),
        generation=CreateGenerationTask(prompt="a hat", width=48, height=32, seed=7),
    )
    return FakeAttempt(tmp_path, spec, Task(id="t", generation=GenerationTaskPublic(seed=7)))


def made(tmp_path: Path, name: str = "image.png") -> Image.Image:
    with Image.open(tmp_path / name) as image:
        image.load()
        return image


async def test_a_picture_is_drawn(server: FalServer, handlers: Handlers, tmp_path: Path) -> None:
    attempt = drawing(tmp_path, guidance=3, prompt="not this", num_images=4, fal_webhook="https://evil.example")
    output = await handlers[TASK_TYPE_GENERATION].run(attempt)
    [request] = server.requests.values()
    assert request.application == APP
    assert request.arguments == {
        "prompt": "a hat",
        "seed": 7,
        "image_size": {"width": 48, "height": 32},
        "num_images": 1,
        "output_format": "png",
        "guidance": 3,
    }
    assert '"guidance": 3,' in server.asked[0].body.decode()
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
    return lambda server: Reply.of({"images": [{"url": server.serve_file("x", data, content_type)}], **more})


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
async def test_a_bad_day(server: FalServer, handlers: Handlers, tmp_path: Path, row: Row) -> None:
    attempt = drawing(tmp_path)
    if row.how is not None:
        server.misbehave(row.how, method=row.method, path=row.path)
    if row.application is not None:
        answering = row.application
        server.application = lambda name, arguments: answering(server)
    async with asyncio.timeout(10):
        with pytest.raises(TaskFailed) as failed:
            await handlers[TASK_TYPE_GENERATION].run(attempt)
    failure = failed.value
    assert ErrorCategory.Name(failure.category) == f"ERROR_CATEGORY_{row.category}"
    assert (failure.retryable, failure.retry_after) == (row.retryable, row.retry_after)
    assert (server.submits, server.count("POST")) == (row.submits, 0 if row.name == "cut_unread" else 1)
    [end] = attempt.rows.values()
    assert ServiceRequestEffect.Name(end.effect) == f"SERVICE_REQUEST_EFFECT_{row.effect}"
    assert attempt.states[-1] == row.states
    assert "fal-tests" not in failure.message


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/status$"), ("GET", "requests/[^/]*$"), ("GET", "/files/")],
    ids=["look", "fetch", "file"],
)
@pytest.mark.parametrize("how", [BROKEN, TOO_MANY, CUT_HALF], ids=str)
async def test_what_costs_nothing_is_asked_again(
    server: FalServer, handlers: Handlers, tmp_path: Path, how: Misbehaviour, method: str, path: str
) -> None:
    if how is TOO_MANY:
        how = Misbehaviour("x", reply=Reply.of({"detail": "slow down"}, 429, retry_after="0"))
    server.misbehave(how, method=method, path=path, times=2)
    await handlers[TASK_TYPE_GENERATION].run(drawing(tmp_path))
    assert server.submits == 1


@pytest.mark.parametrize("quirk", ["foreign_addresses", "empty_202"])
async def test_quirks_are_taken(server: FalServer, handlers: Handlers, tmp_path: Path, quirk: str) -> None:
    setattr(server, quirk, True)
    server.running_looks = 3
    await handlers[TASK_TYPE_GENERATION].run(drawing(tmp_path))
    assert server.submits == 1


async def test_a_job_that_fails_after_ten_looks_ends(server: FalServer, handlers: Handlers, tmp_path: Path) -> None:
    server.queue_looks, server.running_looks = 4, 6
    server.application = lambda *_: request_error("runner_server_error", "boom", 500)
    with pytest.raises(TaskFailed):
        await handlers[TASK_TYPE_GENERATION].run(drawing(tmp_path))
    [request] = server.requests.values()
    assert request.looks >= 11


@pytest.mark.parametrize("cancellable", [True, False])
async def test_a_job_that_never_ends_is_called_off_in_time(
    server: FalServer, kit: ProviderKit, handlers: Handlers, tmp_path: Path, cancellable: bool
) -> None:
    server.never, server.cancellable = True, cancellable
    attempt = drawing(tmp_path)
    object.__setattr__(kit.settings, "provider_wait_seconds", 0.5)
    with pytest.raises(TaskFailed) as failed:
        await handlers[TASK_TYPE_GENERATION].run(attempt)
    assert failed.value.category == ErrorCategory.ERROR_CATEGORY_TIMEOUT
    assert failed.value.retryable is cancellable
    assert (server.submits, server.count("PUT")) == (1, 1)


async def test_a_cancelled_task_is_called_off_at_fal(server: FalServer, handlers: Handlers, tmp_path: Path) -> None:
    server.never, attempt = True, drawing(tmp_path)
    running = asyncio.create_task(handlers[TASK_TYPE_GENERATION].run(attempt))
    await attempt.until("ACCEPTED")
    attempt.called_off = True
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    [request] = server.requests.values()
    assert request.cancelled


async def test_another_attempt_goes_on_with_the_same_request(
    server: FalServer, handlers: Handlers, tmp_path: Path
) -> None:
    server.never, attempt = True, drawing(tmp_path)
    running = asyncio.create_task(handlers[TASK_TYPE_GENERATION].run(attempt))
    await attempt.until("ACCEPTED")
    running.cancel()  # the worker drains
    await asyncio.wait([running])
    [request] = server.requests.values()
    assert not request.cancelled
    server.never = False
    await handlers[TASK_TYPE_GENERATION].run(attempt.again())
    assert server.submits == 1


async def test_a_request_of_an_unknown_name_is_not_waited_for(
    server: FalServer, handlers: Handlers, tmp_path: Path
) -> None:
    attempt = drawing(tmp_path)
    await handlers[TASK_TYPE_GENERATION].run(attempt)
    server.requests.clear()
    with pytest.raises(TaskFailed) as failed:
        await handlers[TASK_TYPE_GENERATION].run(attempt.again())
    assert not failed.value.retryable
    assert server.submits == 0


@pytest.mark.parametrize(("text", "sent"), [("x" * 10, 0), ("../../evil", 0), ("a/b?fal_webhook=https://e", 0)])
async def test_what_is_no_application_is_not_called(
    server: FalServer, handlers: Handlers, tmp_path: Path, text: str, sent: int
) -> None:
    attempt = drawing(tmp_path)
    attempt.spec.provider_config.fal_standard.fal_app_id = text
    with pytest.raises(TaskFailed):
        await handlers[TASK_TYPE_GENERATION].run(attempt)
    assert len(server.asked) == sent


def input_file(tmp_path: Path, name: str, data: bytes) -> Path:
    path = tmp_path / f"{name}.png"
    path.write_bytes(data)
    return path


def of(spec: dict[str, Any], **more: Any) -> CreateTask:
    return ParseDict(spec, CreateTask(provider_config=config(**more)))


async def test_a_picture_is_edited_with_its_references(server: FalServer, handlers: Handlers, tmp_path: Path) -> None:
    spec = of({"editing": {"prompt": "red", "width": 40, "height": 40, "seed": "9", "base_image": "b"}})
    inputs = {
        "base": input_file(tmp_path, "base", png(80, 40)),
        "reference[0]": input_file(tmp_path, "reference", png(8, 8)),
    }
    output = await handlers[TASK_TYPE_EDITING].run(FakeAttempt(tmp_path, spec, inputs=inputs))
    [request] = server.requests.values()
    assert request.arguments["image_urls"][0] == request.arguments["image_url"]
    assert [url[:22] for url in request.arguments["image_urls"]] == ["data:image/png;base64,"] * 2
    assert (request.arguments["prompt"], request.arguments["seed"]) == ("red", 9)
    assert output.result.editing.seed == 9
    assert made(tmp_path).size == (40, 40)


@pytest.mark.parametrize("provider", ["standard", "refiner", "refiner_of_the_task"])
async def test_a_picture_is_enlarged_to_the_exact_size(
    server: FalServer, kit: ProviderKit, handlers: Handlers, tmp_path: Path, provider: str
) -> None:
    server.application = lambda *_: Reply.of({"image": {"url": server.serve_file("big.png", png(160, 80))}})
    refine = CreateRefineTask(base_image_url="b", upscale_factor=1.5, upscale_prompt="sharp", upscale_seed=3)
    spec = CreateTask(provider_config=config(), refine=refine)
    handler, app = handlers[TASK_TYPE_REFINE], APP
    if provider != "standard":
        handler = fal_shootify_refiner.handlers(kit)[TASK_TYPE_REFINE]
        app = "acme/refiner/v2" if provider == "refiner_of_the_task" else kit.settings.fal_refiner_app
        named = FalShootifyRefinerConfig(fal_app_id="acme/refiner/v2" if provider == "refiner_of_the_task" else None)
        spec.provider_config.CopyFrom(ProviderConfig(fal_shootify_refiner=named))
    base = input_file(tmp_path, "base", png(81, 40, (1, 2, 3, 90), "RGBA"))
    task = Task(id="t", refine=RefineTaskPublic(upscale_seed=3))
    await handler.run(FakeAttempt(tmp_path, spec, task, inputs={"base": base}))
    [request] = server.requests.values()
    assert request.application == app
    assert {name: request.arguments[name] for name in ("upscale_factor", "prompt", "seed")} == {
        "upscale_factor": 1.51,
        "prompt": "sharp",
        "seed": 3,
    }
    image = made(tmp_path)
    assert (image.size, image.mode, image.getchannel("A").getextrema()) == ((122, 60), "RGBA", (90, 90))


async def test_backgrounds_are_removed_picture_by_picture(
    server: FalServer, handlers: Handlers, tmp_path: Path
) -> None:
    def cut(_: str, arguments: Mapping[str, Any]) -> Reply:
        if arguments["image_url"].startswith("data:image/jpeg"):
            return model_error("image_load_error", "no")
        return Reply.of({"image": {"url": server.serve_file("c.png", png(9, 9, (1, 1, 1, 5), "RGBA"))}})

    server.application = cut
    spec = of({"background_remove": {"input_image_paths": ["a", "b", "c"]}})
    bad = tmp_path / "b.jpeg"
    await asyncio.to_thread(bad.write_bytes, jpeg(9, 9))
    inputs = {"input_image_paths[0]": input_file(tmp_path, "a", png(9, 9)), "input_image_paths[1]": bad}
    attempt = FakeAttempt(tmp_path, spec, inputs=inputs)
    attempt.refused_inputs = {"input_image_paths[2]": "input_image_paths[2]: is no picture"}
    output = await handlers[TASK_TYPE_BACKGROUND_REMOVE].run(attempt)
    assert list(output.result.background_remove.result_image_paths) == ["", "", ""]
    assert [(file.name, file.index) for file in output.files] == [("image-0.png", 0)]
    assert [error[:20] for error in output.errors] == ["input_image_paths[1]", "input_image_paths[2]"]
    assert server.submits == 2


async def test_no_picture_of_a_batch_is_paid_twice(server: FalServer, handlers: Handlers, tmp_path: Path) -> None:
    server.application = lambda *_: Reply.of({"image": {"url": server.serve_file(f"{len(server.files)}", png(9, 9))}})
    spec = of({"background_remove": {"input_image_paths": ["a", "b"]}})
    inputs = {f"input_image_paths[{index}]": input_file(tmp_path, f"a{index}", png(9, 9)) for index in range(2)}
    attempt = FakeAttempt(tmp_path, spec, inputs=inputs)
    # Both are made; the file of one is not delivered now.
    server.misbehave(BROKEN, path="/files/1$", times=3)
    with pytest.raises(TaskFailed) as failed:
        await handlers[TASK_TYPE_BACKGROUND_REMOVE].run(attempt)
    assert failed.value.retryable
    output = await handlers[TASK_TYPE_BACKGROUND_REMOVE].run(attempt.again())
    assert len(output.files) == 2
    assert server.submits == 2


async def test_a_garment_is_fixed_after_its_reference(server: FalServer, kit: ProviderKit, tmp_path: Path) -> None:
    spec = CreateTask(
        detail_enhancer=CreateDetailEnhancerTask(base_image="a", reference_image="b", detail_label="logo")
    )
    inputs = {
        "base": input_file(tmp_path, "base", png(60, 30)),
        "reference": input_file(tmp_path, "reference", png(10, 10)),
    }
    handler = fal_garment_fixer.handlers(kit)[TASK_TYPE_DETAIL_ENHANCER]
    await handler.run(FakeAttempt(tmp_path, spec, inputs=inputs))
    [request] = server.requests.values()
    assert request.application == kit.settings.fal_garment_app
    assert len(request.arguments["image_urls"]) == 2
    assert "logo" in request.arguments["prompt"]
    assert made(tmp_path).size == (60, 30)


def clip(path: Path, seconds: float, codec: str = "libx264") -> bytes:
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream(codec, rate=8)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(round(seconds * 8)):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number * 3 % 255, np.uint8), "rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path.read_bytes()


def length(path: Path) -> tuple[str, int]:
    with av.open(str(path)) as found:
        stream = found.streams.video[0]
        return stream.codec_context.name, sum(1 for _ in found.decode(stream))


@pytest.mark.parametrize(("seconds", "asked", "made_seconds"), [(5, "5", 5.0), (7, "10", 10.0)])
async def test_a_clip_has_the_length_that_is_asked_for(
    server: FalServer,
    handlers: Handlers,
    tmp_path: Path,
    seconds: int,
    asked: str,
    made_seconds: float,
) -> None:
    data = await asyncio.to_thread(clip, tmp_path / "made.mp4", made_seconds)
    server.application = lambda *_: Reply.of({"video": {"url": server.serve_file("v.mp4", data, "video/mp4")}})
    spec = of({"video_generation": {"prompt": "wave", "input_image_url": "a", "duration_seconds": seconds}})
    attempt = FakeAttempt(tmp_path, spec, inputs={"input": input_file(tmp_path, "input", png())})
    output = await handlers[TASK_TYPE_VIDEO_GENERATION].run(attempt)
    [request] = server.requests.values()
    assert request.arguments["duration"] == asked
    assert [file.content_type for file in output.files] == ["video/mp4"]
    assert await asyncio.to_thread(length, tmp_path / "video.mp4") == ("h264", seconds * 8)


async def test_a_clip_that_is_none_is_an_empty_answer(server: FalServer, handlers: Handlers, tmp_path: Path) -> None:
    server.application = lambda *_: Reply.of({"video": {"url": server.serve_file("v.mp4", b"x" * 99, "video/mp4")}})
    spec = of({"video_generation": {"prompt": "wave", "input_image_url": "a"}})
    attempt = FakeAttempt(tmp_path, spec, inputs={"input": input_file(tmp_path, "input", png())})
    with pytest.raises(TaskFailed) as failed:
        await handlers[TASK_TYPE_VIDEO_GENERATION].run(attempt)
    assert failed.value.category == ErrorCategory.ERROR_CATEGORY_PROVIDER
    assert not (await asyncio.to_thread((tmp_path / "video.mp4").exists))


async def test_a_clip_longer_than_any_is_refused_before_it_is_paid(
    server: FalServer, handlers: Handlers, tmp_path: Path
) -> None:
    spec = of({"video_generation": {"prompt": "wave", "input_image_url": "a", "duration_seconds": 11}})
    attempt = FakeAttempt(tmp_path, spec, inputs={"input": input_file(tmp_path, "input", png())})
    with pytest.raises(TaskFailed, match="may be 10 at most"):
        await handlers[TASK_TYPE_VIDEO_GENERATION].run(attempt)
    assert server.submits == 0


async def experiment(handlers: Handlers, tmp_path: Path, **parameters: Any) -> Output:
    spec = of(
        {"experimental_fal": {"fal_app_id": "acme/anything/sub", "fal_parameters": parameters}}, steps=2, left="static"
    )
    return await handlers[TASK_TYPE_EXPERIMENTAL_FAL].run(FakeAttempt(tmp_path, spec))


async def test_any_application_takes_any_parameters(server: FalServer, handlers: Handlers, tmp_path: Path) -> None:
    parameters = {"steps": 3, "scale": 0.5, "deep": {"seeds": [1, 2.5, None]}, "on": True}
    output = await experiment(handlers, tmp_path, **parameters, fal_webhook="https://e", webhook_url="https://e")
    [request] = server.requests.values()
    assert request.application == "acme/anything/sub"
    assert request.arguments == {"left": "static", **parameters}
    assert b'"steps": 3,' in server.asked[0].body
    assert b'"seeds": [1, 2.5, null]' in server.asked[0].body
    assert request.webhook == ""
    assert output.result.experimental_fal.result_url.startswith(server.url)
    assert [(file.name, file.content_type) for file in output.files] == [
        ("result-0.png", "image/png"),
        ("answer.json", "application/json"),
    ]


async def test_an_answer_without_media_is_kept_itself(server: FalServer, handlers: Handlers, tmp_path: Path) -> None:
    server.application = lambda *_: Reply.of({"text": "a caption"})
    output = await experiment(handlers, tmp_path)
    assert [file.name for file in output.files] == ["answer.json"]
    assert "a caption" in await asyncio.to_thread((tmp_path / "answer.json").read_text)


async def test_media_that_a_browser_would_run_is_kept_as_bytes(
    server: FalServer, handlers: Handlers, tmp_path: Path
) -> None:
    server.application = lambda *_: Reply.of({"file": {"url": server.serve_file("x.html", b"<script>", "text/html")}})
    output = await experiment(handlers, tmp_path)
    assert (output.files[0].name, output.files[0].content_type) == ("result-0.bin", "application/octet-stream")


async def test_the_official_client_agrees_with_the_server(server: FalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fal_module, "QUEUE_URL_FORMAT", f"{server.url}/")
    client = fal_client.AsyncClient(key="fal-tests")
    # Its own connections accept https alone, and have a spare domain.
    plain = httpx.AsyncClient(headers={"Authorization": "Key fal-tests"}, timeout=10)
    client.__dict__["_client"] = _ready(plain)
    handle = await client.submit(APP, {"image_size": {"width": 9, "height": 9}, "seed": 1}, webhook_url="https://h/x")
    seen = [type(await handle.status()).__name__ for _ in range(2)]
    assert seen == ["Queued", "InProgress"]
    found = await handle.get(interval=0.01)
    assert found["images"][0]["url"].startswith(server.url)
    assert isinstance(await handle.status(), fal_client.Completed)
    second = await client.submit(APP, {})
    await second.cancel()
    assert [request.cancelled for request in server.requests.values()] == [False, True]
    assert [request.webhook for request in server.requests.values()] == ["https://h/x", ""]
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
