"""Models of providers that evaluate, against servers that speak their protocols, and misbehave."""

import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image

from services.inference.evaluation.config import EvaluationSettings
from tests.integration.inference.evaluation_server import RunningEvaluation, photo_data, started
from tests.providers import base
from tests.providers.base import Misbehaviour
from tests.providers.gemini import GeminiServer
from tests.providers.openai import OpenAiServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

JUDGED = {
    "framing": "upper_body",
    "view_angle": "front",
    "shot_confidence": 0.9,
    "number_of_people": 1,
    "presence_confidence": 1.0,
    "anatomy_correct": True,
    "anatomy_issues": [],
    "anatomy_confidence": 0.5,
    "gender": "FEMALE",
    "gender_confidence": 0.8,
    "collage": False,
    "garments": "An orange space suit.",
    "subject": "A woman who smiles.",
    "scene": "A studio with a flag.",
}


class Scene:
    """The role, and the two providers that it calls."""

    def __init__(self, running: RunningEvaluation, openai: OpenAiServer, gemini: GeminiServer) -> None:
        self.running, self.openai, self.gemini = running, openai, gemini
        self.servers: dict[str, Any] = {"AI_CORE": openai, "VERTEX": gemini}

    async def evaluate(self, provider: str, **members: Any) -> dict[str, Any]:
        answer = await self.running.evaluate(f"?provider={provider}", image_data=photo_data(), **members)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def health(self, provider: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.running.health(f"?provider={provider}")).json()
        return found


@pytest_asyncio.fixture(loop_scope="module")
async def scene() -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        openai = await stack.enter_async_context(OpenAiServer())
        gemini = await stack.enter_async_context(GeminiServer())
        openai.text = gemini.text = f"```json\n{json.dumps(JUDGED)}\n```"
        running = await started(
            stack,
            evaluation_providers=("LOCAL", "AI_CORE", "VERTEX"),
            evaluation_ai_model="gpt-4.1",
            evaluation_answer_seconds=5.0,
            openai_key=openai.key,
            openai_url=f"{openai.url}/v1",
            gemini_key=gemini.key,
            gemini_url=gemini.url,
        )
        yield Scene(running, openai, gemini)


@pytest.mark.parametrize("provider", ["AI_CORE", "VERTEX"])
async def test_a_model_judges_and_describes(scene: Scene, provider: str) -> None:
    found = await scene.evaluate(provider, include_descriptions=True, custom_instructions="Mind the helmet.")
    assert found["success"] is True
    assert found["matches_expected"] is True
    assert (found["anatomy_correct"], found["anatomy_issues"], found["anatomy_confidence"]) == (True, None, 0.5)
    assert (found["detected_gender"], found["gender_confidence"]) == ("FEMALE", 0.8)
    assert found["garment_description"] == "An orange space suit."
    assert (found["subject_description"], found["scene_description"]) == (JUDGED["subject"], JUDGED["scene"])
    assert found["confidence_summary"] == 0.8
    server = scene.servers[provider]
    assert (len(server.asked), server.paid) == (1, 1)
    sent = server.asked[0].body.decode()
    assert "Mind the helmet." in sent
    health = await scene.health(provider)
    assert (health["total_evaluations"], health["circuit_breaker_state"]) == (1, "closed")
    assert (await scene.health("LOCAL"))["total_evaluations"] == 0


async def test_the_picture_is_sent_whole_and_no_descriptions_are_asked_for(scene: Scene) -> None:
    found = await scene.evaluate("AI_CORE")
    assert found["garment_description"] is found["subject_description"] is found["scene_description"] is None
    [body] = scene.openai.bodies
    picture, text = sorted(body["messages"][1]["content"], key=lambda part: part["type"])
    assert '"garments"' not in text["text"]
    url = picture["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as seen:
        assert seen.size == (220, 256)


@pytest.mark.parametrize(
    ("provider", "misbehaviour", "state"),
    [
        ("AI_CORE", base.UNAUTHORISED, "open"),
        ("AI_CORE", base.TOO_MANY, "closed"),
        ("AI_CORE", base.BROKEN, "closed"),
        ("AI_CORE", base.CUT_READ, "closed"),
        ("AI_CORE", base.HTML, "closed"),
        ("AI_CORE", base.SLOW, "closed"),
        ("VERTEX", base.UNAUTHORISED, "open"),
        ("VERTEX", base.CUT_READ, "closed"),
    ],
    ids=str,
)
async def test_a_provider_that_fails_is_told_and_asked_once(
    scene: Scene, provider: str, misbehaviour: Misbehaviour, state: str
) -> None:
    server = scene.servers[provider]
    server.misbehave(misbehaviour)
    found = await scene.evaluate(provider)
    assert found["success"] is False
    assert found["error"].startswith(("OpenAI", "Gemini", "The connection to"))
    assert {name for name, value in found.items() if value is not None} == {"success", "error", "evaluation_time_ms"}
    assert len(server.asked) == 1
    health = await scene.health(provider)
    assert (health["success_rate"], health["circuit_breaker_state"]) == (0.0, state)
    assert health["is_healthy"] is (state == "closed")


async def test_an_open_breaker_asks_nobody(scene: Scene) -> None:
    scene.openai.misbehave(base.UNAUTHORISED)
    await scene.evaluate("AI_CORE")
    found = await scene.evaluate("AI_CORE")
    assert (found["success"], len(scene.openai.asked)) == (False, 1)
    assert "left alone" in found["error"]
    # Its neighbours go on.
    assert (await scene.evaluate("VERTEX"))["success"] is True


async def test_an_answer_that_is_no_judgement_is_a_failure(scene: Scene) -> None:
    scene.openai.text = "She looks great!"
    found = await scene.evaluate("AI_CORE")
    assert found["error"] == "OpenAI answered without a judgement that can be read."
    assert (await scene.health("AI_CORE"))["success_rate"] == 0.0


async def test_a_refusal_is_told_and_says_nothing_of_the_providers_health(scene: Scene) -> None:
    scene.gemini.finish = "SAFETY"
    for _ in range(6):
        assert (await scene.evaluate("VERTEX"))["success"] is False
    assert (await scene.health("VERTEX"))["circuit_breaker_state"] == "closed"


@pytest.mark.parametrize(
    "settings",
    [
        {"evaluation_providers": ("VERTEX",)},
        {"evaluation_providers": ("AI_CORE",), "openai_key": "key"},
        {"evaluation_providers": ("AI_CORE",), "evaluation_ai_model": "m"},
        {"evaluation_providers": ("FASHN_STANDARD",)},
        {"evaluation_providers": ()},
    ],
)
async def test_a_role_that_could_not_call_does_not_start(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"needs|credential|name one"):
        EvaluationSettings(**settings)
