"""Task types by fal's providers: what an application is given, and what is made of its answer."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from atelier.tasks.v1.detail_enhancer_pb2 import CreateDetailEnhancerTask
from atelier.tasks.v1.enums_pb2 import (
    TASK_TYPE_BACKGROUND_REMOVE,
    TASK_TYPE_DETAIL_ENHANCER,
    TASK_TYPE_EDITING,
    TASK_TYPE_EXPERIMENTAL_FAL,
    TASK_TYPE_REFINE,
    TASK_TYPE_VIDEO_GENERATION,
    ErrorCategory,
    TaskType,
)
from atelier.tasks.v1.providers_pb2 import FalShootifyRefinerConfig, ProviderConfig
from atelier.tasks.v1.refine_pb2 import CreateRefineTask, RefineTaskPublic
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from av.video.stream import VideoStream

from meshkit.worker.handlers import CallHandler, Output, TaskFailed
from services.inference.providers import clip_child, fal_garment_fixer, fal_shootify_refiner, fal_standard
from services.inference.providers.clips import write_clip
from services.inference.providers.kit import ProviderKit
from tests.providers.attempt import FakeAttempt
from tests.providers.base import (
    BROKEN,
    CUT_READ,
    NO_JSON,
    Misbehaviour,
    Reply,
    jpeg,
    png,
)
from tests.providers.fal import FalServer, model_error
from tests.providers.fal_tasks import APP, fal_config, fal_task, input_file, made

Handlers = Mapping[TaskType.ValueType, CallHandler]

# A place for a file that is none of fal's, and not by https.
FOREIGN = Misbehaviour(
    "foreign", reply=Reply.of({"upload_url": "http://127.0.0.1:9/x", "file_url": "https://fal.media/x"})
)

# One loop for all: the children that judge pictures are started once.
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_large_inputs_go_by_fals_storage_each_once(fal: FalServer, fal_kit: ProviderKit, tmp_path: Path) -> None:
    fal_kit.settings = fal_kit.settings.model_copy(update={"fal_upload_bytes": 2000})
    spec = fal_task({"editing": {"prompt": "red", "width": 40, "height": 40, "seed": "9", "base_image": "b"}})
    large = jpeg(640, 480)
    inputs = {
        "base": input_file(tmp_path, "base", png(8, 8)),
        "reference[0]": input_file(tmp_path, "reference", large),
        "reference[1]": input_file(tmp_path, "again", large),
    }
    handler = fal_standard.handlers(fal_kit)[TASK_TYPE_EDITING]
    attempt = FakeAttempt(tmp_path, spec, inputs=inputs)
    await handler.run(attempt)
    [request] = fal.requests.values()
    base, reference, again = request.arguments["image_urls"]
    assert base.startswith("data:image/png;base64,")
    assert reference == again == f"{fal.url}/files/{next(iter(fal.uploads))}"
    assert fal.files[reference.removeprefix(fal.url)].body == large
    assert (fal.count("PUT", "/uploads/"), fal.submits, fal.paid) == (1, 1, 1)
    initiated = next(asked for asked in fal.asked if asked.path.startswith("/storage/"))
    assert "86400" in initiated.headers["x-fal-object-lifecycle-preference"]
    await handler.run(attempt.again())
    assert (fal.count("PUT", "/uploads/"), fal.submits) == (1, 1)


@pytest.mark.parametrize(
    ("path", "how"),
    [
        ("/storage/", BROKEN),
        ("/storage/", CUT_READ),
        ("/storage/", NO_JSON),
        ("/storage/", FOREIGN),
        ("/uploads/", BROKEN),
        ("/uploads/", CUT_READ),
    ],
    ids=str,
)
async def test_an_upload_that_fails_costs_nothing_and_is_made_again(
    fal: FalServer, fal_kit: ProviderKit, tmp_path: Path, path: str, how: Misbehaviour
) -> None:
    fal_kit.settings = fal_kit.settings.model_copy(update={"fal_upload_bytes": 2000})
    spec = fal_task({"editing": {"prompt": "red", "width": 40, "height": 40, "seed": "9", "base_image": "b"}})
    inputs = {
        "base": input_file(tmp_path, "base", png(8, 8)),
        "reference[0]": input_file(tmp_path, "reference", jpeg(640, 480)),
    }
    attempt = FakeAttempt(tmp_path, spec, inputs=inputs)
    handler = fal_standard.handlers(fal_kit)[TASK_TYPE_EDITING]
    fal.misbehave(how, path=path)
    with pytest.raises(TaskFailed) as failed:
        await handler.run(attempt)
    assert (failed.value.category, failed.value.retryable) == (ErrorCategory.ERROR_CATEGORY_PROVIDER, True)
    assert (attempt.states, fal.submits) == ([], 0)
    await handler.run(attempt)
    assert (fal.submits, fal.paid) == (1, 1)


async def test_a_picture_is_edited_with_its_references(fal: FalServer, fal_handlers: Handlers, tmp_path: Path) -> None:
    spec = fal_task({"editing": {"prompt": "red", "width": 40, "height": 40, "seed": "9", "base_image": "b"}})
    inputs = {
        "base": input_file(tmp_path, "base", png(80, 40)),
        "reference[0]": input_file(tmp_path, "reference", png(8, 8)),
    }
    output = await fal_handlers[TASK_TYPE_EDITING].run(FakeAttempt(tmp_path, spec, inputs=inputs))
    [request] = fal.requests.values()
    assert request.arguments["image_urls"][0] == request.arguments["image_url"]
    assert [url[:22] for url in request.arguments["image_urls"]] == ["data:image/png;base64,"] * 2
    assert (request.arguments["prompt"], request.arguments["seed"]) == ("red", 9)
    assert output.result.editing.seed == 9
    assert made(tmp_path).size == (40, 40)


@pytest.mark.parametrize("provider", ["standard", "refiner", "refiner_of_the_task"])
async def test_a_picture_is_enlarged_to_the_exact_size(
    fal: FalServer, fal_kit: ProviderKit, fal_handlers: Handlers, tmp_path: Path, provider: str
) -> None:
    fal.application = lambda *_: Reply.of({"image": {"url": fal.serve_file("big.png", png(160, 80))}})
    refine = CreateRefineTask(base_image_url="b", upscale_factor=1.5, upscale_prompt="sharp", upscale_seed=3)
    spec = CreateTask(provider_config=fal_config(), refine=refine)
    handler, app = fal_handlers[TASK_TYPE_REFINE], APP
    if provider != "standard":
        handler = fal_shootify_refiner.handlers(fal_kit)[TASK_TYPE_REFINE]
        app = "acme/refiner/v2" if provider == "refiner_of_the_task" else fal_kit.settings.fal_refiner_app
        named = FalShootifyRefinerConfig(fal_app_id="acme/refiner/v2" if provider == "refiner_of_the_task" else None)
        spec.provider_config.CopyFrom(ProviderConfig(fal_shootify_refiner=named))
    base = input_file(tmp_path, "base", png(81, 40, (1, 2, 3, 90), "RGBA"))
    task = Task(id="t", refine=RefineTaskPublic(upscale_seed=3))
    await handler.run(FakeAttempt(tmp_path, spec, task, inputs={"base": base}))
    [request] = fal.requests.values()
    assert request.application == app
    assert {name: request.arguments[name] for name in ("upscale_factor", "prompt", "seed")} == {
        "upscale_factor": 1.51,
        "prompt": "sharp",
        "seed": 3,
    }
    image = made(tmp_path)
    assert (image.size, image.mode, image.getchannel("A").getextrema()) == ((122, 60), "RGBA", (90, 90))


async def test_backgrounds_are_removed_picture_by_picture(
    fal: FalServer, fal_handlers: Handlers, tmp_path: Path
) -> None:
    def cut(_: str, arguments: Mapping[str, Any]) -> Reply:
        if arguments["image_url"].startswith("data:image/jpeg"):
            return model_error("image_load_error", "no")
        return Reply.of({"image": {"url": fal.serve_file("c.png", png(9, 9, (1, 1, 1, 5), "RGBA"))}})

    fal.application = cut
    spec = fal_task({"background_remove": {"input_image_paths": ["a", "b", "c"]}})
    bad = tmp_path / "b.jpeg"
    await asyncio.to_thread(bad.write_bytes, jpeg(9, 9))
    inputs = {"input_image_paths[0]": input_file(tmp_path, "a", png(9, 9)), "input_image_paths[1]": bad}
    attempt = FakeAttempt(tmp_path, spec, inputs=inputs)
    attempt.refused_inputs = {"input_image_paths[2]": "input_image_paths[2]: is no picture"}
    output = await fal_handlers[TASK_TYPE_BACKGROUND_REMOVE].run(attempt)
    assert list(output.result.background_remove.result_image_paths) == ["", "", ""]
    assert [(file.name, file.index) for file in output.files] == [("image-0.png", 0)]
    assert [error[:20] for error in output.errors] == ["input_image_paths[1]", "input_image_paths[2]"]
    assert fal.submits == 2


async def test_no_picture_of_a_batch_is_paid_twice(fal: FalServer, fal_handlers: Handlers, tmp_path: Path) -> None:
    fal.application = lambda *_: Reply.of({"image": {"url": fal.serve_file(f"{len(fal.files)}", png(9, 9))}})
    spec = fal_task({"background_remove": {"input_image_paths": ["a", "b"]}})
    inputs = {f"input_image_paths[{index}]": input_file(tmp_path, f"a{index}", png(9, 9)) for index in range(2)}
    attempt = FakeAttempt(tmp_path, spec, inputs=inputs)
    # Both are made; the file of one is not delivered now.
    fal.misbehave(BROKEN, path="/files/1$", times=3)
    with pytest.raises(TaskFailed) as failed:
        await fal_handlers[TASK_TYPE_BACKGROUND_REMOVE].run(attempt)
    assert failed.value.retryable
    output = await fal_handlers[TASK_TYPE_BACKGROUND_REMOVE].run(attempt.again())
    assert len(output.files) == 2
    assert fal.submits == 2


async def test_a_garment_is_fixed_after_its_reference(fal: FalServer, fal_kit: ProviderKit, tmp_path: Path) -> None:
    spec = CreateTask(
        detail_enhancer=CreateDetailEnhancerTask(base_image="a", reference_image="b", detail_label="logo")
    )
    inputs = {
        "base": input_file(tmp_path, "base", png(60, 30)),
        "reference": input_file(tmp_path, "reference", png(10, 10)),
    }
    handler = fal_garment_fixer.handlers(fal_kit)[TASK_TYPE_DETAIL_ENHANCER]
    await handler.run(FakeAttempt(tmp_path, spec, inputs=inputs))
    [request] = fal.requests.values()
    assert request.application == fal_kit.settings.fal_garment_app
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
    fal: FalServer,
    fal_handlers: Handlers,
    tmp_path: Path,
    seconds: int,
    asked: str,
    made_seconds: float,
) -> None:
    data = await asyncio.to_thread(clip, tmp_path / "made.mp4", made_seconds)
    fal.application = lambda *_: Reply.of({"video": {"url": fal.serve_file("v.mp4", data, "video/mp4")}})
    spec = fal_task({"video_generation": {"prompt": "wave", "input_image_url": "a", "duration_seconds": seconds}})
    attempt = FakeAttempt(tmp_path, spec, inputs={"input": input_file(tmp_path, "input", png())})
    output = await fal_handlers[TASK_TYPE_VIDEO_GENERATION].run(attempt)
    [request] = fal.requests.values()
    assert request.arguments["duration"] == asked
    assert [file.content_type for file in output.files] == ["video/mp4"]
    assert await asyncio.to_thread(length, tmp_path / "video.mp4") == ("h264", seconds * 8)


async def test_a_clip_that_is_none_is_an_empty_answer(fal: FalServer, fal_handlers: Handlers, tmp_path: Path) -> None:
    fal.application = lambda *_: Reply.of({"video": {"url": fal.serve_file("v.mp4", b"x" * 99, "video/mp4")}})
    spec = fal_task({"video_generation": {"prompt": "wave", "input_image_url": "a"}})
    attempt = FakeAttempt(tmp_path, spec, inputs={"input": input_file(tmp_path, "input", png())})
    with pytest.raises(TaskFailed) as failed:
        await fal_handlers[TASK_TYPE_VIDEO_GENERATION].run(attempt)
    assert failed.value.category == ErrorCategory.ERROR_CATEGORY_PROVIDER
    assert not (await asyncio.to_thread((tmp_path / "video.mp4").exists))


async def test_a_clip_that_cannot_be_judged_here_is_not_the_providers_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_child, "__name__", "services.inference.providers.away")
    with pytest.raises(TaskFailed) as failed:
        await write_clip("fal", b"x" * 99, tmp_path / "video.mp4", 4.0)
    assert (failed.value.category, failed.value.retryable) == (ErrorCategory.ERROR_CATEGORY_RESOURCE, True)
    assert await asyncio.to_thread(lambda: list(tmp_path.iterdir())) == []


async def test_a_clip_longer_than_any_is_refused_before_it_is_paid(
    fal: FalServer, fal_handlers: Handlers, tmp_path: Path
) -> None:
    spec = fal_task({"video_generation": {"prompt": "wave", "input_image_url": "a", "duration_seconds": 11}})
    attempt = FakeAttempt(tmp_path, spec, inputs={"input": input_file(tmp_path, "input", png())})
    with pytest.raises(TaskFailed, match="may be 10 at most"):
        await fal_handlers[TASK_TYPE_VIDEO_GENERATION].run(attempt)
    assert fal.submits == 0


async def experiment(fal_handlers: Handlers, tmp_path: Path, **parameters: Any) -> Output:
    spec = fal_task(
        {"experimental_fal": {"fal_app_id": "acme/anything/sub", "fal_parameters": parameters}}, steps=2, left="static"
    )
    return await fal_handlers[TASK_TYPE_EXPERIMENTAL_FAL].run(FakeAttempt(tmp_path, spec))


async def test_any_application_takes_any_parameters(fal: FalServer, fal_handlers: Handlers, tmp_path: Path) -> None:
    parameters = {"steps": 3, "scale": 0.5, "deep": {"seeds": [1, 2.5, None]}, "on": True}
    output = await experiment(fal_handlers, tmp_path, **parameters, fal_webhook="https://e", webhook_url="https://e")
    [request] = fal.requests.values()
    assert request.application == "acme/anything/sub"
    assert request.arguments == {"left": "static", **parameters}
    assert b'"steps": 3,' in fal.asked[0].body
    assert b'"seeds": [1, 2.5, null]' in fal.asked[0].body
    assert request.webhook == ""
    assert output.result.experimental_fal.result_url.startswith(fal.url)
    assert [(file.name, file.content_type) for file in output.files] == [
        ("result-0.png", "image/png"),
        ("answer.json", "application/json"),
    ]


async def test_an_answer_without_media_is_kept_itself(fal: FalServer, fal_handlers: Handlers, tmp_path: Path) -> None:
    fal.application = lambda *_: Reply.of({"text": "a caption"})
    output = await experiment(fal_handlers, tmp_path)
    assert [file.name for file in output.files] == ["answer.json"]
    assert "a caption" in await asyncio.to_thread((tmp_path / "answer.json").read_text)


async def test_media_that_a_browser_would_run_is_kept_as_bytes(
    fal: FalServer, fal_handlers: Handlers, tmp_path: Path
) -> None:
    fal.application = lambda *_: Reply.of({"file": {"url": fal.serve_file("x.html", b"<script>", "text/html")}})
    output = await experiment(fal_handlers, tmp_path)
    assert (output.files[0].name, output.files[0].content_type) == ("result-0.bin", "application/octet-stream")
