"""VERTEX against a server that speaks Gemini's protocol, and misbehaves: what comes of it, and what is paid."""

import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from atelier.tasks.v1.editing_pb2 import CreateEditingTask
from atelier.tasks.v1.enums_pb2 import (
    PROVIDER_TYPE_VERTEX,
    TASK_TYPE_EDITING,
    TASK_TYPE_GENERATION,
    TASK_TYPE_LLM_INTERACTION,
    TASK_TYPE_REFINE,
)
from atelier.tasks.v1.generation_pb2 import CreateGenerationTask
from atelier.tasks.v1.llm_interaction_pb2 import CreateLLMInteractionTask
from atelier.tasks.v1.providers_pb2 import ProviderConfig, VertexConfig
from atelier.tasks.v1.refine_pb2 import CreateRefineTask
from atelier.tasks.v1.task_pb2 import CreateTask
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.protobuf.struct_pb2 import Struct
from PIL import Image

from meshkit.catalog import PROVIDERS, TASK_TYPES
from meshkit.images.checks import ImageChecks
from meshkit.worker.handlers import CallHandler, Output, TaskFailed
from services.inference.config import InferenceSettings
from services.inference.providers import vertex
from services.inference.providers.kit import ProviderKit
from tests.providers import base, gemini
from tests.providers.attempt import FakeAttempt
from tests.providers.base import Misbehaviour
from tests.providers.gemini import GeminiServer
from tests.providers.judging import Row, category, effect, judge

pytestmark = pytest.mark.asyncio(loop_scope="module")

Make = Callable[..., "Scene"]
DETAILS = {
    TASK_TYPE_GENERATION: "generation",
    TASK_TYPE_EDITING: "editing",
    TASK_TYPE_REFINE: "refine",
    TASK_TYPE_LLM_INTERACTION: "llm_interaction",
}


@dataclass
class Scene:
    """The server, and the handlers that call it."""

    server: GeminiServer
    handlers: Any
    folder: Path

    def attempt(
        self, detail: Any, *, pictures: dict[str, Image.Image] | None = None, fit: str = "", **config: Any
    ) -> FakeAttempt:
        inputs = {name: self.folder / f"input-{name}.png" for name in pictures or {}}
        for name, image in (pictures or {}).items():
            image.save(inputs[name])
        (name,) = [one for one in DETAILS.values() if type(detail) is type(getattr(CreateTask(), one))]
        spec = CreateTask(
            provider_type=PROVIDER_TYPE_VERTEX,
            provider_config=ProviderConfig(vertex=VertexConfig(**config)),
            **{name: detail},
        )
        if fit:
            spec.config.CopyFrom(Struct())
            spec.config.update({"fit": fit})
        folder = self.folder / "out"
        folder.mkdir(exist_ok=True)
        return FakeAttempt(folder, spec, inputs=inputs)

    def handler(self, attempt: FakeAttempt) -> CallHandler:
        detail = attempt.spec.WhichOneof("detail")
        (kind,) = [number for number, name in DETAILS.items() if name == detail]
        found: CallHandler = self.handlers[kind]
        return found

    async def run(self, detail: Any, **asked: Any) -> tuple[Output, Image.Image, FakeAttempt]:
        attempt = self.attempt(detail, **asked)
        output = await self.handler(attempt).run(attempt)
        assert [(file.name, file.field) for file in output.files] == [("image.png", "result_image_path")]
        assert [path.name for path in attempt.folder.iterdir()] == ["image.png"]
        with Image.open(attempt.folder / "image.png") as image:
            image.load()
        assert image.format == "PNG"
        return output, image, attempt

    async def fails(self, detail: Any, **asked: Any) -> tuple[TaskFailed, FakeAttempt]:
        attempt = self.attempt(detail, **asked)
        with pytest.raises(TaskFailed) as failed:
            await self.handler(attempt).run(attempt)
        return failed.value, attempt


@pytest_asyncio.fixture(loop_scope="module")
async def make(checks: ImageChecks, tmp_path: Path) -> AsyncIterator[Make]:
    """Make a scene by further settings."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(GeminiServer())

        def made(**settings: Any) -> Scene:
            account = {"gemini_key": server.key, "gemini_url": server.url}
            given = InferenceSettings(**{**account, "provider_request_seconds": 60.0, **settings})
            return Scene(server, vertex.handlers(ProviderKit.from_settings(given, checks, stack)), tmp_path)

        yield made


@pytest.fixture
def scene(make: Make) -> Scene:
    return make()


def generation(**fields: Any) -> CreateGenerationTask:
    return CreateGenerationTask(**{"prompt": "a red dress", "width": 64, "height": 64, **fields})


def quarters(width: int, height: int) -> Image.Image:
    """Return a picture whose four quarters differ."""
    image = Image.new("RGB", (width, height), (200, 40, 40))
    image.paste((40, 200, 40), (width // 2, 0, width, height // 2))
    image.paste((40, 40, 200), (0, height // 2, width // 2, height))
    image.paste((220, 220, 60), (width // 2, height // 2, width, height))
    return image


def near(image: Image.Image, place: tuple[float, float], colour: tuple[int, int, int]) -> bool:
    found = image.convert("RGB").getpixel((int(place[0] * image.width), int(place[1] * image.height)))
    assert isinstance(found, tuple)
    return all(abs(level - wanted) <= 12 for level, wanted in zip(found, colour, strict=True))


def shows_quarters(image: Image.Image, margin: float = 0.02) -> bool:
    low, high = margin, 1 - margin
    return (
        near(image, (low, low), (200, 40, 40))
        and near(image, (high, low), (40, 200, 40))
        and near(image, (low, high), (40, 40, 200))
        and near(image, (high, high), (220, 220, 60))
    )


@pytest.mark.parametrize(
    ("size", "aspect"),
    [
        ((1024, 1024), "1:1"),
        ((600, 900), "2:3"),
        ((900, 600), "3:2"),
        ((300, 400), "3:4"),
        ((400, 320), "5:4"),
        ((360, 640), "9:16"),
        ((1920, 1080), "16:9"),
        ((2100, 900), "21:9"),
        ((64, 16), "21:9"),
        ((512, 500), "1:1"),
    ],
)
async def test_a_picture_has_the_asked_size_and_the_nearest_aspect(
    scene: Scene, size: tuple[int, int], aspect: str
) -> None:
    output, image, attempt = await scene.run(generation(width=size[0], height=size[1]))
    assert image.size == size
    assert scene.server.bodies[0]["generationConfig"]["imageConfig"] == {"aspectRatio": aspect}
    assert scene.server.paid == 1
    assert attempt.states == ["SENDING", "DONE"]
    assert (attempt.notes[-1].target, attempt.notes[-1].operation) == ("gemini-3-pro-image", "draw")
    # The pictures of thoughts that come before it are black.
    assert image.convert("RGB").getpixel((9, 9)) != (0, 0, 0)
    said_so = any("another aspect" in warning for warning in output.result.warnings)
    assert said_so is (size == (64, 16))


async def test_settings_of_the_task_reach_the_model(scene: Scene) -> None:
    await scene.run(
        generation(width=4096, height=1756),
        model="gemini-9-image",
        image_size="2K",
        aspect_ratio="16:9",
        system_instructions="Draw flat.",
        temperature=0.25,
        top_p=0.5,
    )
    body = scene.server.bodies[0]
    assert "gemini-9-image:generateContent" in scene.server.asked[0].path
    assert body["systemInstruction"]["parts"] == [{"text": "Draw flat."}]
    assert body["generationConfig"] == {
        "temperature": 0.25,
        "topP": 0.5,
        "responseModalities": ["TEXT", "IMAGE"],
        "imageConfig": {"aspectRatio": "16:9", "imageSize": "2K"},
    }


async def test_defaults_are_those_of_the_contract_and_of_the_settings(make: Make) -> None:
    scene = make(gemini_image_model="gemini-7-image")
    await scene.run(generation())
    body = scene.server.bodies[0]
    assert "gemini-7-image:generateContent" in scene.server.asked[0].path
    assert "fashion" in body["systemInstruction"]["parts"][0]["text"]
    assert (body["generationConfig"]["temperature"], body["generationConfig"]["topP"]) == (1.0, 0.95)


@pytest.mark.parametrize("fit", ["", "contain", "cover", "stretch"])
async def test_a_picture_of_words_is_brought_to_its_size_without_a_silent_crop(scene: Scene, fit: str) -> None:
    drawn = Image.new("RGB", (1584, 672), "teal")
    drawn.paste("red", (0, 250, 60, 422))
    drawn.paste("blue", (700, 0, 800, 60))
    scene.server.picture = gemini.png(drawn)
    output, image, _ = await scene.run(generation(width=400, height=100), fit=fit)
    assert image.size == (400, 100)
    assert output.result.warnings[0].endswith(f"brought to its size: {fit or 'contain'}.")
    # The left edge of what was drawn is that of the picture, unless something is beside it; its upper edge may go.
    assert near(image, (0.01, 0.5), (255, 0, 0)) is (fit in {"cover", "stretch"})
    assert near(image, (0.473, 0.02), (0, 0, 255)) is (fit != "cover")


async def test_a_fit_that_there_is_not_is_refused_before_anything_is_sent(scene: Scene) -> None:
    failed, attempt = await scene.fails(generation(), fit="squeeze")
    assert (category(failed), attempt.notes, scene.server.asked) == ("VALIDATION", [], [])


async def test_a_reference_is_sent_with_its_strength(scene: Scene) -> None:
    await scene.run(generation(reference_image_strength=70), pictures={"reference": quarters(3000, 1500)})
    parts = scene.server.bodies[0]["contents"][0]["parts"]
    sent = gemini.shown(parts[0])
    assert sent is not None
    assert Image.open(io.BytesIO(sent)).size == (1536, 768)
    assert "70 percent" in parts[1]["text"]


@pytest.mark.parametrize("size", [(64, 64), (500, 700), (700, 500), (1000, 200), (111, 333)])
async def test_an_edit_keeps_all_of_the_picture_and_has_exactly_its_size(scene: Scene, size: tuple[int, int]) -> None:
    output, image, _ = await scene.run(
        CreateEditingTask(prompt="make it red", width=size[0], height=size[1]), pictures={"base": quarters(*size)}
    )
    assert image.size == size
    assert shows_quarters(image)
    assert list(output.result.warnings) == []


async def test_an_edit_of_another_aspect_follows_fit(scene: Scene) -> None:
    asked = CreateEditingTask(prompt="make it red", width=300, height=600)
    pictures = {"base": quarters(300, 300), "reference[0]": Image.new("RGB", (30, 20), "teal")}
    _, image, _ = await scene.run(asked, pictures=pictures)
    assert near(image, (0.05, 0.27), (200, 40, 40))  # the picture is in the middle of the sheet, all of it
    assert near(image, (0.95, 0.73), (220, 220, 60))
    _, image, _ = await scene.run(asked, pictures=pictures, fit="stretch")
    assert shows_quarters(image)
    parts = scene.server.bodies[1]["contents"][0]["parts"]
    reference = gemini.shown(parts[1])
    assert reference is not None
    assert Image.open(io.BytesIO(reference)).size == (30, 20)
    assert parts[2] == {"text": "make it red"}


async def test_a_large_picture_is_sent_within_the_limits_of_a_request(scene: Scene) -> None:
    noise = Image.effect_noise((2500, 2500), 90).convert("RGB")
    await scene.run(CreateEditingTask(prompt="x", width=1000, height=1000), pictures={"base": noise}, image_size="2K")
    part = scene.server.bodies[0]["contents"][0]["parts"][0]["inlineData"]
    sent = gemini.shown(scene.server.bodies[0]["contents"][0]["parts"][0])
    assert sent is not None
    assert len(sent) < 3_000_000
    assert "image/" in json.dumps(part)


@pytest.mark.parametrize(
    ("asked", "size", "image_size"),
    [
        (CreateRefineTask(upscale_factor=2), (240, 160), None),
        (CreateRefineTask(upscale_factor=1.5, face_detail_enabled=False), (180, 120), None),
        (CreateRefineTask(target_width=1200), (1200, 800), "2K"),
        (CreateRefineTask(target_width=500, target_height=500), (500, 500), None),
        (CreateRefineTask(upscale_enabled=False), (120, 80), None),
    ],
)
async def test_a_refined_picture_has_its_size(
    scene: Scene, asked: CreateRefineTask, size: tuple[int, int], image_size: str | None
) -> None:
    _, image, _ = await scene.run(asked, pictures={"base": quarters(120, 80)})
    assert image.size == size
    assert shows_quarters(image)
    assert scene.server.bodies[0]["generationConfig"]["imageConfig"].get("imageSize") == image_size
    told = scene.server.bodies[0]["contents"][0]["parts"][1]["text"]
    assert ("faces sharp" in told) is (not asked.HasField("face_detail_enabled"))


async def test_transparency_is_refined_too_and_never_sent(scene: Scene) -> None:
    picture = quarters(120, 80)
    picture.putalpha(Image.new("L", picture.size, 100))
    _, image, _ = await scene.run(CreateRefineTask(upscale_factor=2), pictures={"base": picture})
    assert (image.mode, image.getchannel("A").getextrema()) == ("RGBA", (100, 100))
    sent = gemini.shown(scene.server.bodies[0]["contents"][0]["parts"][0])
    assert sent is not None
    assert Image.open(io.BytesIO(sent)).mode == "RGB"


async def test_nothing_is_paid_where_nothing_is_asked(scene: Scene) -> None:
    asked = CreateRefineTask(upscale_enabled=False, face_detail_enabled=False)
    _, image, attempt = await scene.run(asked, pictures={"base": quarters(120, 80)})
    assert (image.size, attempt.notes, scene.server.asked) == ((120, 80), [], [])
    assert shows_quarters(image)


async def test_a_picture_that_was_drawn_too_small_says_so(scene: Scene) -> None:
    scene.server.picture = gemini.png(Image.new("RGB", (512, 512), "teal"))
    output, image, _ = await scene.run(
        CreateRefineTask(target_width=1024), pictures={"base": Image.new("RGB", (60, 60), "teal")}
    )
    assert image.size == (1024, 1024)
    assert list(output.result.warnings) == [
        "The provider drew the picture smaller than asked for; its sides were enlarged 2.00 times."
    ]


async def test_a_prompt_is_answered_by_a_text_model(make: Make) -> None:
    scene = make(gemini_text_model="gemini-8-flash")
    asked = CreateLLMInteractionTask(prompt="What is it?")
    attempt = scene.attempt(asked, pictures={"input[0]": Image.new("RGB", (20, 10), "teal")}, top_p=0.5)
    output = await scene.handler(attempt).run(attempt)
    assert output.result.llm_interaction.result_text == "A red dress. "
    assert "gemini-8-flash:streamGenerateContent" in scene.server.asked[0].path
    body = scene.server.bodies[0]
    assert body["generationConfig"] == {"temperature": 1.0, "topP": 0.5}
    assert "fashion" in body["systemInstruction"]["parts"][0]["text"]
    assert gemini.shown(body["contents"][0]["parts"][0]) is not None


REASONS = [
    "SAFETY",
    "PROHIBITED_CONTENT",
    "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT",
    "BLOCKLIST",
    "SPII",
    "RECITATION",
    "IMAGE_RECITATION",
    "MODEL_ARMOR",
]


@pytest.mark.parametrize("state", [*({"finish": reason} for reason in REASONS), {"block": "OTHER"}], ids=str)
async def test_a_refusal_that_comes_as_a_success_is_one(scene: Scene, state: dict[str, str]) -> None:
    for member, value in state.items():
        setattr(scene.server, member, value)
    failed, attempt = await scene.fails(generation())
    assert (category(failed), failed.retryable, scene.server.paid) == ("CONTENT_POLICY", False, 1)
    assert (attempt.states, effect(attempt)) == (["SENDING", "FAILED"], "IGNORED")


@pytest.mark.parametrize(
    "state",
    [{"finish": "NO_IMAGE"}, {"finish": "IMAGE_OTHER"}, {"finish": "OTHER"}, {"text_only": True}, {"picture": b"none"}],
    ids=str,
)
async def test_an_answer_without_a_picture_is_no_success(scene: Scene, state: dict[str, Any]) -> None:
    for member, value in state.items():
        setattr(scene.server, member, value)
    failed, attempt = await scene.fails(generation())
    assert (category(failed), failed.retryable, scene.server.paid) == ("PROVIDER", True, 1)
    assert (attempt.states, effect(attempt)) == (["SENDING", "FAILED"], "FAILURE")
    assert list(attempt.folder.iterdir()) == []


def answers(name: str, status: int, message: str) -> Misbehaviour:
    return Misbehaviour(name, reply=gemini.error(status, message))


ROWS = [
    Row.of(base.TOO_MANY, "RATE_LIMIT", True, "IGNORED", 0, 7.0),
    Row.of(Misbehaviour("too_many_by_body", reply=gemini.exhausted(7.5)), "RATE_LIMIT", True, "IGNORED", 0, 7.5),
    Row.of(answers("unauthorised", 401, "who are you?"), "PROVIDER", False, "FATAL", 0),
    Row.of(answers("forbidden", 403, "not yours"), "PROVIDER", False, "FATAL", 0),
    Row.of(base.NO_CREDITS, "PROVIDER", False, "FATAL", 0),
    Row.of(answers("bad", 400, "no such thing"), "VALIDATION", False, "IGNORED", 0),
    Row.of(answers("broken", 500, "oops"), "PROVIDER", True, "FAILURE", 0),
    Row.of(answers("unavailable", 503, "overloaded"), "PROVIDER", True, "FAILURE", 0),
    Row.of(answers("too_late", 504, "deadline"), "PROVIDER", False, "FAILURE", 0, state="UNKNOWN"),
    Row.of(base.NO_JSON, "PROVIDER", True, "FAILURE", 0),
    Row.of(base.HTML, "PROVIDER", True, "FAILURE", 0),
    Row.of(base.REDIRECT, "PROVIDER", True, "FAILURE", 0),
    Row.of(Misbehaviour("nothing", reply=base.Reply.of({})), "PROVIDER", True, "FAILURE", 0),
    Row.of(base.CUT_UNREAD, "PROVIDER", False, "FAILURE", 0, state="UNKNOWN"),
    Row.of(base.CUT_READ, "PROVIDER", False, "FAILURE", 1, state="UNKNOWN"),
    Row.of(base.CUT_HALF, "PROVIDER", False, "FAILURE", 1, state="UNKNOWN"),
    Row.of(base.SLOW, "PROVIDER", False, "FAILURE", 0, state="UNKNOWN"),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_misbehaviour(make: Make, row: Row) -> None:
    scene = make(provider_request_seconds=1.5 if row.name == base.SLOW.name else 60.0)
    row.arrange(scene.server)
    failed, attempt = await scene.fails(generation())
    judge(row, failed, attempt, scene.server)
    assert attempt.states == ["SENDING", row.state]


async def test_what_an_attempt_sent_before_it_died_is_not_sent_again(scene: Scene) -> None:
    first = scene.attempt(generation())
    await scene.handler(first).run(first)
    dead = FakeAttempt(first.folder, first.spec, rows={first.notes[0].id: first.notes[0]})
    with pytest.raises(TaskFailed) as failed:
        await scene.handler(dead).run(dead)
    assert (category(failed.value), failed.value.retryable, dead.states) == ("PROVIDER", False, ["UNKNOWN"])
    assert scene.server.paid == 1


async def test_a_wrong_key_is_no_mistake_of_the_caller(make: Make) -> None:
    failed, attempt = await make(gemini_key="wrong-secret").fails(generation())
    assert (category(failed), failed.retryable, effect(attempt)) == ("PROVIDER", False, "FATAL")
    assert "wrong-secret" not in failed.message + str(attempt.notes)


async def test_a_worker_without_an_account_does_not_start(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Gemini needs ATELIER_GEMINI_KEY"):
        make(gemini_key="")
    with pytest.raises(ValueError, match="ATELIER_VERTEX_CREDENTIALS_FILE"):
        make(vertex_project="shop", vertex_credentials_file=tmp_path / "none.json")


async def test_a_model_that_there_is_not_is_the_callers_mistake(scene: Scene) -> None:
    failed, _ = await scene.fails(generation(), model="unknown-model")
    assert (category(failed), failed.retryable) == ("VALIDATION", False)
    for model in ("../../v1/files", "a:b?c=", "a/b"):
        failed, _ = await scene.fails(generation(), model=model)
        assert category(failed) == "VALIDATION"
    assert len(scene.server.asked) == 1


def account(path: Path, server: GeminiServer) -> Path:
    """Write the credentials of a service account whose tokens the server gives."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    about = {"client_email": "w@p.iam.gserviceaccount.com", "project_id": "p", "private_key_id": "1"}
    content = {"type": "service_account", "private_key": key.decode(), "token_uri": f"{server.url}/token", **about}
    path.write_text(json.dumps(content))
    return path


async def test_vertex_is_called_by_a_service_account(make: Make, tmp_path: Path) -> None:
    server = make().server
    given: dict[str, Any] = {"vertex_project": "shop", "vertex_location": "europe-west4", "vertex_url": server.url}
    scene = make(**given, vertex_credentials_file=account(tmp_path / "account.json", server))
    _, image, _ = await scene.run(generation())
    assert image.size == (64, 64)
    assert [asked.path for asked in server.asked] == [
        "/token",
        "/v1beta1/projects/shop/locations/europe-west4/publishers/google/models/gemini-3-pro-image:generateContent",
    ]
    server.token = "another"  # pragma: allowlist secret
    failed, attempt = await scene.fails(generation())
    assert (category(failed), effect(attempt)) == ("PROVIDER", "FATAL")


async def test_each_type_of_the_contract_has_a_handler(scene: Scene) -> None:
    assert set(scene.handlers) == {TASK_TYPES[name].number for name in PROVIDERS["VERTEX"].tasks} == set(DETAILS)
