"""The SARTIQ_ULTIMATE pipelines over Gemini and fal, against their servers: what is sent, paid, kept and called off."""

import asyncio
import base64
import io
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from atelier.tasks.v1.detail_enhancer_pb2 import CreateDetailEnhancerTask
from atelier.tasks.v1.enums_pb2 import (
    PROVIDER_TYPE_SARTIQ_ULTIMATE_FACE_FIXER,
    PROVIDER_TYPE_SARTIQ_ULTIMATE_GARMENT_FIXER,
    PROVIDER_TYPE_SARTIQ_ULTIMATE_REFINER,
    ErrorCategory,
    ProviderType,
)
from atelier.tasks.v1.face_enhancer_pb2 import CreateFaceEnhancerTask
from atelier.tasks.v1.providers_pb2 import ProviderConfig
from atelier.tasks.v1.refine_pb2 import CreateRefineTask
from atelier.tasks.v1.task_pb2 import CreateTask
from PIL import Image

from meshkit.images.checks import ImageChecks
from meshkit.worker.handlers import CallHandler, Output, TaskFailed
from modelkit.refiner import resampled
from services.inference import composition
from services.inference.config import InferenceSettings
from services.inference.providers import load_calls
from services.inference.providers.kit import ProviderKit
from tests.providers.attempt import FakeAttempt
from tests.providers.base import Reply
from tests.providers.fal import FalServer
from tests.providers.gemini import GeminiServer, shown

pytestmark = pytest.mark.asyncio(loop_scope="module")

PHOTO = Path(__file__).parents[2] / "unit" / "modelkit" / "data" / "astronaut.jpg"
REFINER, GARMENT, FACE = (
    PROVIDER_TYPE_SARTIQ_ULTIMATE_REFINER,
    PROVIDER_TYPE_SARTIQ_ULTIMATE_GARMENT_FIXER,
    PROVIDER_TYPE_SARTIQ_ULTIMATE_FACE_FIXER,
)
NAMES = {
    REFINER: "SARTIQ_ULTIMATE_REFINER",
    GARMENT: "SARTIQ_ULTIMATE_GARMENT_FIXER",
    FACE: "SARTIQ_ULTIMATE_FACE_FIXER",
}

PLAIN: dict[str, Any] = {"face_detail_enabled": False}

Handler = Callable[..., CallHandler]


def photo(width: int = 110, height: int = 128) -> Image.Image:
    with Image.open(PHOTO) as image:
        return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def attempt(
    folder: Path,
    provider: ProviderType.ValueType,
    config: Mapping[str, Any],
    *,
    image: Image.Image | None = None,
    **fields: Any,
) -> FakeAttempt:
    details: dict[int, dict[str, Any]] = {
        REFINER: {"refine": CreateRefineTask(**({"upscale_factor": 2} | fields))},
        GARMENT: {"detail_enhancer": CreateDetailEnhancerTask(detail_label="shirt")},
        FACE: {"face_enhancer": CreateFaceEnhancerTask()},
    }
    settings = ProviderConfig(**{NAMES[provider].lower(): dict(config)})  # type: ignore[arg-type] # one of its members
    spec = CreateTask(provider_type=provider, provider_config=settings, **details[provider])
    (image or photo()).save(folder / "picture.png")
    inputs = dict.fromkeys(("base", "reference", "input"), folder / "picture.png")
    out = folder / "out"
    out.mkdir(exist_ok=True)
    return FakeAttempt(out, spec, inputs=inputs)


def made_by(found: FakeAttempt) -> Image.Image:
    with Image.open(found.folder / "image.png") as image:
        image.load()
        return image


@pytest_asyncio.fixture(loop_scope="module")
async def gemini() -> AsyncIterator[GeminiServer]:
    async with GeminiServer() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def handler(gemini: GeminiServer, checks: ImageChecks) -> AsyncIterator[Handler]:
    """Return a pipeline's handler over Gemini, or by further settings over another."""
    async with AsyncExitStack() as stack:

        def made(provider: ProviderType.ValueType, **settings: Any) -> CallHandler:
            account = {"ultimate_editor": "VERTEX", "gemini_key": gemini.key, "gemini_url": gemini.url}
            given = InferenceSettings(**{**account, "provider_request_seconds": 20.0, **settings})
            kit = ProviderKit.from_settings(given, checks, stack)
            [work] = load_calls([NAMES[provider]], 4, kit)
            assert work.queue == "inference"
            [(pair, found)] = work.handlers.items()
            assert pair.provider == provider
            return found

        yield made


async def test_a_picture_is_refined_by_a_request_for_each_tile(
    gemini: GeminiServer, handler: Handler, tmp_path: Path
) -> None:
    found = attempt(
        tmp_path, REFINER, {"save_debug_tiles": True}, upscale_prompt="an astronaut", face_detail_enabled=False
    )
    output = await handler(REFINER).run(found)
    assert isinstance(output, Output)
    assert made_by(found).size == (220, 256)
    truth = np.asarray(resampled(photo(), 220, 256)).astype(int)
    assert np.abs(np.asarray(made_by(found)) - truth).mean() < 6
    assert gemini.paid == 4
    assert sorted(row.operation for row in found.rows.values()) == [f"tile-{number}-1" for number in (1, 2, 3, 4)]
    assert {row.provider_type for row in found.rows.values()} == {REFINER}
    assert found.states.count("SENDING") == found.states.count("DONE") == 4
    assert [file.name for file in output.files] == [
        "image.png",
        *(f"debug-tile-{n}-attempt-1.png" for n in (1, 2, 3, 4)),
    ]
    for body in gemini.bodies:
        assert "imageSize" not in body["generationConfig"]["imageConfig"]  # 1K
        assert "an astronaut" in body["contents"][0]["parts"][-1]["text"]
    assert found.steps == sorted(found.steps)


@pytest.mark.long
async def test_version_1_redraws_faces_by_themselves_and_version_2_is_always_4k(
    gemini: GeminiServer, handler: Handler, tmp_path: Path
) -> None:
    found = attempt(tmp_path, REFINER, {"num_tiles": 1}, image=photo(160, 186))
    await handler(REFINER).run(found)
    assert sorted(row.operation for row in found.rows.values()) == ["face-1-1", "tile-1-1"]
    found = attempt(tmp_path, REFINER, {"num_tiles": 1, "version": "2"}, image=photo(160, 186))
    await handler(REFINER).run(found)
    assert [row.operation for row in found.rows.values()] == ["tile-1-1"]
    sizes = [body["generationConfig"]["imageConfig"].get("imageSize", "1K") for body in gemini.bodies]
    assert sizes == ["1K", "1K", "4K"]


async def test_what_differs_is_drawn_again_and_stays_plain_where_it_always_does(
    gemini: GeminiServer, handler: Handler, tmp_path: Path
) -> None:
    gemini.strange = 1
    found = attempt(tmp_path, REFINER, {"num_tiles": 1, "max_retries": 3}, **PLAIN)
    await handler(REFINER).run(found)
    assert [row.operation for row in found.rows.values()] == ["tile-1-1", "tile-1-2"]
    assert gemini.paid == 2
    gemini.strange = 9
    found = attempt(tmp_path, REFINER, {"num_tiles": 1, "max_retries": 1}, **PLAIN)
    await handler(REFINER).run(found)
    assert gemini.paid == 4
    assert made_by(found).tobytes() == resampled(photo(), 220, 256).tobytes()


async def test_a_refusal_is_the_tasks_and_no_tile_is_asked_for_after_it(
    gemini: GeminiServer, handler: Handler, tmp_path: Path
) -> None:
    gemini.finish = "IMAGE_SAFETY"
    found = attempt(tmp_path, REFINER, {"num_tiles": 4, "max_workers": 1}, **PLAIN)
    with pytest.raises(TaskFailed) as failed:
        await handler(REFINER).run(found)
    assert failed.value.category == ErrorCategory.ERROR_CATEGORY_CONTENT_POLICY
    assert not failed.value.retryable
    assert gemini.paid <= 2
    assert set(found.states) == {"SENDING", "FAILED"}


async def test_a_request_whose_outcome_nobody_knows_is_not_sent_again(
    gemini: GeminiServer, handler: Handler, tmp_path: Path
) -> None:
    first = attempt(tmp_path, REFINER, {"num_tiles": 1}, **PLAIN)
    await handler(REFINER).run(first)
    assert gemini.paid == 1
    again = attempt(tmp_path, REFINER, {"num_tiles": 1}, **PLAIN)
    again.rows = dict(first.rows)
    with pytest.raises(TaskFailed) as failed:
        await handler(REFINER).run(again)
    assert not failed.value.retryable
    assert gemini.paid == 1


async def test_a_garment_is_redrawn_after_its_reference(gemini: GeminiServer, handler: Handler, tmp_path: Path) -> None:
    found = attempt(tmp_path, GARMENT, {"save_debug_images": True})
    output = await handler(GARMENT).run(found)
    assert not output.result.detail_enhancer.fallback_used
    assert made_by(found).size == (110, 128)
    assert [row.operation for row in found.rows.values()] == ["detail-1-1"]
    pictures = [shown(part) for part in gemini.bodies[0]["contents"][0]["parts"]]
    assert sum(picture is not None for picture in pictures) == 2
    assert "shirt" in gemini.bodies[0]["contents"][0]["parts"][-1]["text"]
    assert {file.name for file in output.files} == {"image.png", "debug-tile-1-attempt-1.png"}


async def test_a_face_is_redrawn_and_the_rest_is_not_sent(
    gemini: GeminiServer, handler: Handler, tmp_path: Path
) -> None:
    image = photo(160, 186)
    found = attempt(tmp_path, FACE, {"expand_percent": 0.1, "face_prompt": "the face"}, image=image)
    output = await handler(FACE).run(found)
    result = output.result.face_enhancer
    assert (result.face_detected, result.attempts_used, result.fallback_used) == (True, 1, False)
    assert result.final_ssim_score > 0.9
    np.testing.assert_array_equal(np.asarray(made_by(found))[110:], np.asarray(image)[110:])
    [sent] = [data for part in gemini.bodies[0]["contents"][0]["parts"] if (data := shown(part)) is not None]
    with Image.open(io.BytesIO(sent)) as part:
        assert max(part.size) < 1024
        small = np.asarray(part.convert("RGB").resize((8, 8))).astype(int)
    assert (small[3:5, 3:5, 0] > small[3:5, 3:5, 2]).all()  # skin, not the suit around it


async def test_fal_redraws_by_the_application_that_settings_name(checks: ImageChecks, tmp_path: Path) -> None:
    names = itertools.count()

    def edit(application: str, arguments: Mapping[str, Any]) -> Reply:
        assert application == "studio/retouch"
        data = base64.b64decode(arguments["image_url"].partition(",")[2])
        with Image.open(io.BytesIO(data)) as image:
            large = image.convert("RGB").resize((arguments["image_size"]["width"], arguments["image_size"]["height"]))
        out = io.BytesIO()
        large.save(out, "PNG", compress_level=1)
        return Reply.of({"images": [{"url": server.serve_file(f"{next(names)}.png", out.getvalue())}]})

    async with FalServer(edit) as server, AsyncExitStack() as stack:
        settings = InferenceSettings(
            ultimate_editor="FAL_STANDARD",
            ultimate_fal_app="studio/retouch",
            fal_key="fal-tests",
            fal_url=server.url,
            fetch_allow_private=(server.host,),
            provider_poll_seconds=0.02,
        )
        kit = ProviderKit.from_settings(settings, checks, stack)
        [work] = load_calls([NAMES[REFINER]], 4, kit)
        [refiner] = work.handlers.values()
        found = attempt(tmp_path, REFINER, {"version": "1", "num_tiles": 2}, face_detail_enabled=False)
        await refiner.run(found)
        assert server.submits == 2
        assert made_by(found).size == (220, 256)
        truth = np.asarray(resampled(photo(), 220, 256)).astype(int)
        assert np.abs(np.asarray(made_by(found)) - truth).mean() < 6
        # Another attempt of a worker that died fetches the same results, and pays for nothing.
        again = attempt(tmp_path, REFINER, {"version": "1", "num_tiles": 2}, face_detail_enabled=False)
        again.rows = dict(found.rows)
        await refiner.run(again)
        assert server.submits == 2


async def test_what_was_asked_for_is_called_off_with_the_task(checks: ImageChecks, tmp_path: Path) -> None:
    async with FalServer() as server, AsyncExitStack() as stack:
        server.never = True
        settings = InferenceSettings(
            ultimate_editor="FAL_STANDARD", fal_key="fal-tests", fal_url=server.url, provider_poll_seconds=0.02
        )
        kit = ProviderKit.from_settings(settings, checks, stack)
        [work] = load_calls([NAMES[REFINER]], 4, kit)
        [refiner] = work.handlers.values()
        found = attempt(tmp_path, REFINER, {"version": "2", "num_tiles": 4, "max_workers": 2})
        running = asyncio.ensure_future(refiner.run(found))
        while found.states.count("ACCEPTED") < 2:
            await found.until("ACCEPTED")
            await asyncio.sleep(0.01)
        found.called_off = True
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert server.submits == 2
        assert found.states.count("FAILED") == 2


async def test_a_worker_that_calls_nobody_says_so(checks: ImageChecks) -> None:
    async with AsyncExitStack() as stack:
        for settings, said in (
            (InferenceSettings(), "ATELIER_ULTIMATE_EDITOR"),
            (InferenceSettings(ultimate_editor="VERTEX"), "ATELIER_GEMINI_KEY"),
        ):
            with pytest.raises(ValueError, match=said):
                load_calls([NAMES[FACE]], 4, ProviderKit.from_settings(settings, checks, stack))


async def test_who_redraws_is_known_at_start() -> None:
    assert InferenceSettings(ultimate_editor="vertex").ultimate_editor == "VERTEX"
    with pytest.raises(ValueError, match="must be one of LOCAL, VERTEX, FAL_STANDARD"):
        InferenceSettings(ultimate_editor="FASHN_STANDARD")


async def test_the_device_leaves_pipelines_to_the_worker_that_calls() -> None:
    own = composition._device_work(InferenceSettings(worker_task_types="REFINE"))
    assert {pair.provider for pair in own.handlers} == {1, REFINER}
    other = composition._device_work(InferenceSettings(worker_task_types="REFINE", ultimate_editor="VERTEX"))
    assert {pair.provider for pair in other.handlers} == {1}


async def test_no_torch_is_imported() -> None:
    code = (
        "import sys, modelkit.edited, modelkit.vision;"
        "from services.inference.providers import ultimate_refiner, ultimate_garment_fixer, ultimate_face_fixer;"
        "sys.exit(bool({'torch', 'ncnn'} & set(sys.modules)))"
    )
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], check=False)
    assert done.returncode == 0
