"""NANO_BANANA_UPSCALER against a server that redraws pictures well, shifted, or not at all: what is kept and paid."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_NANO_BANANA_UPSCALER, TASK_TYPE_REFINE
from atelier.tasks.v1.providers_pb2 import NanoBananaUpscalerConfig, ProviderConfig
from atelier.tasks.v1.refine_pb2 import CreateRefineTask
from atelier.tasks.v1.task_pb2 import CreateTask
from PIL import Image, ImageDraw

from meshkit.images.checks import ImageChecks
from meshkit.worker.handlers import Output, TaskFailed
from services.inference.config import InferenceSettings
from services.inference.providers import nano_banana_upscaler
from services.inference.providers.kit import ProviderKit
from tests.providers import base, gemini
from tests.providers.attempt import FakeAttempt
from tests.providers.base import Misbehaviour
from tests.providers.gemini import GeminiServer
from tests.providers.judging import Row, category, effects, judge

pytestmark = pytest.mark.asyncio(loop_scope="module")

Make = Callable[..., "Scene"]


@dataclass
class Scene:
    """The server, and the handler that calls it."""

    server: GeminiServer
    handler: nano_banana_upscaler.NanoBananaUpscalerHandler
    folder: Path

    def attempt(self, asked: CreateRefineTask | None = None, **config: Any) -> FakeAttempt:
        path = self.folder / "base.png"
        picture().save(path)
        spec = CreateTask(
            provider_type=PROVIDER_TYPE_NANO_BANANA_UPSCALER,
            provider_config=ProviderConfig(nano_banana_upscaler=NanoBananaUpscalerConfig(**config)),
            refine=asked or CreateRefineTask(upscale_factor=2),
        )
        folder = self.folder / "out"
        folder.mkdir(exist_ok=True)
        return FakeAttempt(folder, spec, inputs={"base": path})

    async def run(
        self, asked: CreateRefineTask | None = None, **config: Any
    ) -> tuple[Output, Image.Image, FakeAttempt]:
        attempt = self.attempt(asked, **config)
        output = await self.handler.run(attempt)
        with Image.open(attempt.folder / "image.png") as image:
            image.load()
        return output, image, attempt

    async def fails(self, **config: Any) -> tuple[TaskFailed, FakeAttempt]:
        attempt = self.attempt(**config)
        with pytest.raises(TaskFailed) as failed:
            await self.handler.run(attempt)
        return failed.value, attempt


@pytest_asyncio.fixture(loop_scope="module")
async def make(checks: ImageChecks, tmp_path: Path) -> AsyncIterator[Make]:
    """Make a scene by further settings."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(GeminiServer())

        def made(**settings: Any) -> Scene:
            account = {"gemini_key": server.key, "gemini_url": server.url}
            given = InferenceSettings(**{**account, "provider_request_seconds": 60.0, **settings})
            handler = nano_banana_upscaler.handlers(ProviderKit.from_settings(given, checks, stack))[TASK_TYPE_REFINE]
            assert isinstance(handler, nano_banana_upscaler.NanoBananaUpscalerHandler)
            return Scene(server, handler, tmp_path)

        yield made


@pytest.fixture
def scene(make: Make) -> Scene:
    return make()


def picture() -> Image.Image:
    """Return a picture with edges all over, so that what shows something else is unlike it."""
    image = Image.new("RGB", (240, 180), "ivory")
    draw = ImageDraw.Draw(image)
    for x in range(0, 240, 24):
        for y in range(0, 180, 20):
            draw.ellipse((x, y, x + 15, y + 11 + x % 9), fill=(x, 40 + y // 2, 200 - y), outline="black")
    return image


async def test_a_faithful_result_is_kept_at_once(scene: Scene) -> None:
    output, image, attempt = await scene.run()
    assert image.size == (480, 360)
    assert list(output.result.warnings) == []
    assert scene.server.paid == 1
    assert attempt.states == ["SENDING", "DONE"]
    assert (attempt.notes[-1].operation, attempt.notes[-1].target) == ("upscale", "gemini-3-pro-image")
    assert [path.name for path in attempt.folder.iterdir()] == ["image.png"]


async def test_a_small_shift_is_none_of_its_faults(scene: Scene) -> None:
    scene.server.shifts = 9  # of 1200 pixels
    output, _, _ = await scene.run(ssim_threshold=0.8)
    assert (scene.server.paid, list(output.result.warnings)) == (1, [])


async def test_what_shows_something_else_is_drawn_again_with_less_freedom(scene: Scene) -> None:
    scene.server.strange = 2
    output, image, attempt = await scene.run(max_retries=3)
    assert (image.size, scene.server.paid, list(output.result.warnings)) == ((480, 360), 3, [])
    # Each is a request of its own, written down before it was sent.
    assert attempt.states == ["SENDING", "DONE"] * 3
    assert len(attempt.rows) == 3
    temperatures = [body["generationConfig"]["temperature"] for body in scene.server.bodies]
    assert temperatures == sorted(temperatures, reverse=True)
    assert len(set(temperatures)) == 3
    assert [path.name for path in attempt.folder.iterdir()] == ["image.png"]


async def test_the_nearest_is_kept_where_none_passes(scene: Scene) -> None:
    scene.server.strange = 1
    output, image, _ = await scene.run(max_retries=1, ssim_threshold=1.0)
    assert (image.size, scene.server.paid) == ((480, 360), 2)
    assert "No result of 2" in output.result.warnings[0]
    assert image.convert("RGB").resize((24, 18)).getcolors(2) is None  # it is not the plain one


async def test_retries_are_bounded(scene: Scene) -> None:
    scene.server.strange = 99
    output, _, _ = await scene.run(max_retries=0)
    assert scene.server.paid == 1
    assert "No result of 1" in output.result.warnings[0]
    await scene.run(max_retries=2)
    assert scene.server.paid == 4


async def test_a_threshold_of_0_switches_the_check_off(scene: Scene) -> None:
    scene.server.strange = 99
    output, _, _ = await scene.run(ssim_threshold=0.0)
    assert (scene.server.paid, list(output.result.warnings)) == (1, [])


async def test_what_was_drawn_is_kept_where_another_request_fails(scene: Scene) -> None:
    scene.server.strange = 1
    scene.server.misbehave(Misbehaviour("first", slow=0.001))
    scene.server.misbehave(Misbehaviour("second", reply=gemini.exhausted(7)))
    output, _, attempt = await scene.run()
    assert scene.server.paid == 1
    assert effects(attempt) == ["SUCCESS", "IGNORED"]
    assert "too many requests" in output.result.warnings[-1]


@pytest.mark.parametrize(
    ("asked", "config", "told"),
    [
        (CreateRefineTask(upscale_factor=2, upscale_prompt="silk"), {"default_prompt": "wool"}, "silk"),
        (CreateRefineTask(upscale_factor=2), {"default_prompt": "wool"}, "wool"),
        (CreateRefineTask(upscale_factor=2), {}, "higher resolution"),
    ],
)
async def test_the_prompt_is_the_tasks_else_the_settings_else_built_in(
    scene: Scene, asked: CreateRefineTask, config: dict[str, Any], told: str
) -> None:
    await scene.run(asked, **config)
    assert told in scene.server.bodies[0]["contents"][0]["parts"][1]["text"]


async def test_the_size_is_exact_and_asked_for_large_enough(scene: Scene) -> None:
    _, image, _ = await scene.run(CreateRefineTask(target_width=1500, target_height=700))
    assert image.size == (1500, 700)
    assert scene.server.bodies[0]["generationConfig"]["imageConfig"]["imageSize"] == "2K"


async def test_nothing_is_paid_where_nothing_is_asked(scene: Scene) -> None:
    _, image, attempt = await scene.run(CreateRefineTask(upscale_enabled=False, face_detail_enabled=False))
    assert (image.size, attempt.notes, scene.server.asked) == ((240, 180), [], [])


ROWS = [
    Row.of(base.TOO_MANY, "RATE_LIMIT", True, "IGNORED", 0, 7.0),
    Row.of(Misbehaviour("too_many_by_body", reply=gemini.exhausted(7.5)), "RATE_LIMIT", True, "IGNORED", 0, 7.5),
    Row.of(base.UNAUTHORISED, "PROVIDER", False, "FATAL", 0),
    Row.of(base.FORBIDDEN, "PROVIDER", False, "FATAL", 0),
    Row.of(base.NO_CREDITS, "PROVIDER", False, "FATAL", 0),
    Row.of(base.BROKEN, "PROVIDER", True, "FAILURE", 0),
    Row.of(base.NO_JSON, "PROVIDER", True, "FAILURE", 0),
    Row.of(base.HTML, "PROVIDER", True, "FAILURE", 0),
    Row.of(base.CUT_UNREAD, "PROVIDER", False, "FAILURE", 0, state="UNKNOWN"),
    Row.of(base.CUT_READ, "PROVIDER", False, "FAILURE", 1, state="UNKNOWN"),
    Row.of(base.CUT_HALF, "PROVIDER", False, "FAILURE", 1, state="UNKNOWN"),
    Row.of(base.SLOW, "PROVIDER", False, "FAILURE", 0, state="UNKNOWN"),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_misbehaviour(make: Make, row: Row) -> None:
    scene = make(provider_request_seconds=1.5 if row.name == base.SLOW.name else 60.0)
    row.arrange(scene.server)
    failed, attempt = await scene.fails()
    judge(row, failed, attempt, scene.server)
    assert attempt.states == ["SENDING", row.state]


@pytest.mark.parametrize(
    ("state", "expected", "retryable"),
    [
        ({"finish": "IMAGE_SAFETY"}, "CONTENT_POLICY", False),
        ({"finish": "NO_IMAGE"}, "PROVIDER", True),
        ({"text_only": True}, "PROVIDER", True),
        ({"picture": b"none"}, "PROVIDER", True),
    ],
    ids=str,
)
async def test_a_success_without_a_picture_is_none(
    scene: Scene, state: dict[str, Any], expected: str, *, retryable: bool
) -> None:
    for member, value in state.items():
        setattr(scene.server, member, value)
    failed, _ = await scene.fails()
    assert (category(failed), failed.retryable, scene.server.paid) == (expected, retryable, 1)


async def test_what_an_attempt_sent_before_it_died_ends_the_next_one(scene: Scene) -> None:
    first = scene.attempt()
    scene.server.strange = 1
    await scene.handler.run(first)
    paid = scene.server.paid
    on_its_way = first.notes[2]  # its second request
    dead = FakeAttempt(first.folder, first.spec, inputs=first.inputs, rows={on_its_way.id: on_its_way})
    with pytest.raises(TaskFailed) as failed:
        await scene.handler.run(dead)
    assert (category(failed.value), failed.value.retryable, dead.states) == ("PROVIDER", False, ["UNKNOWN"])
    assert scene.server.paid == paid == 2


async def test_a_picture_that_cannot_be_kept_is_no_fault_of_the_provider(scene: Scene) -> None:
    attempt = scene.attempt()
    (attempt.folder / "sent").symlink_to("/dev/full")
    with pytest.raises(TaskFailed) as failed:
        await scene.handler.run(attempt)
    assert (category(failed.value), failed.value.retryable) == ("RESOURCE", True)
    # It is paid, and its row says no more than that it was sent: another attempt does not send it again.
    assert (attempt.states, scene.server.paid) == (["SENDING"], 1)
