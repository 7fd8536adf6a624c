"""AI_CORE against servers that speak the four protocols, and misbehave: what comes of it, and what is paid."""

import base64
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest
import pytest_asyncio
from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_AI_CORE, TASK_TYPE_LLM_INTERACTION
from atelier.tasks.v1.llm_interaction_pb2 import CreateLLMInteractionTask
from atelier.tasks.v1.providers_pb2 import AiCoreProviderConfig, ProviderConfig
from atelier.tasks.v1.task_pb2 import CreateTask
from google import genai
from google.genai import types
from PIL import Image

from meshkit.images.checks import ImageChecks
from meshkit.worker.handlers import Output, TaskFailed
from services.inference.config import InferenceSettings
from services.inference.providers import ai_core
from services.inference.providers.kit import ProviderKit
from tests.providers import anthropic as anthropic_server
from tests.providers import base
from tests.providers import gemini as gemini_server
from tests.providers import ollama as ollama_server
from tests.providers import openai as openai_server
from tests.providers.anthropic import AnthropicServer
from tests.providers.attempt import FakeAttempt
from tests.providers.base import Misbehaviour, ProviderServer, Reply
from tests.providers.gemini import GeminiServer
from tests.providers.judging import Row, category, effect, judge
from tests.providers.ollama import OllamaServer
from tests.providers.openai import OpenAiServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODELS = {"openai": "gpt-4.1", "anthropic": "claude-haiku-4-5", "gemini": "gemini-2.5-flash", "ollama": "llama3.2"}
ALL = list(MODELS)
Make = Callable[..., Awaitable["Scene"]]


@dataclass
class Scene:
    """A server, and the handler that calls it."""

    server: Any
    handler: ai_core.AiCoreHandler
    folder: Path
    name: str

    def attempt(self, *, pictures: int = 0, prompt: str = "What is it?", **config: Any) -> FakeAttempt:
        asked = CreateLLMInteractionTask(prompt=prompt, system_prompt="You know dresses.")
        inputs = {}
        for index in range(pictures):
            inputs[f"input[{index}]"] = self.folder / f"input-{index}.png"
            Image.new("RGB", (2000, 500), "teal").save(inputs[f"input[{index}]"])
        settings = AiCoreProviderConfig(**{"ai_provider": self.name, "model": MODELS[self.name], **config})
        spec = CreateTask(
            provider_type=PROVIDER_TYPE_AI_CORE, provider_config=ProviderConfig(ai_core=settings), llm_interaction=asked
        )
        return FakeAttempt(self.folder, spec, inputs=inputs)

    async def run(self, **asked: Any) -> tuple[Output, FakeAttempt]:
        attempt = self.attempt(**asked)
        return await self.handler.run(attempt), attempt

    async def fails(self, **asked: Any) -> tuple[TaskFailed, FakeAttempt]:
        attempt = self.attempt(**asked)
        with pytest.raises(TaskFailed) as failed:
            await self.handler.run(attempt)
        return failed.value, attempt


SERVERS: dict[str, Callable[[], ProviderServer]] = {
    "openai": OpenAiServer,
    "anthropic": AnthropicServer,
    "gemini": GeminiServer,
    "ollama": OllamaServer,
}


@pytest_asyncio.fixture(loop_scope="module")
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Make a scene by the name of the provider and further settings."""
    async with AsyncExitStack() as stack:

        async def made(name: str, **settings: Any) -> Scene:
            server = await stack.enter_async_context(SERVERS[name]())
            address = {f"{name}_url": server.url + ("/v1" if name == "openai" else "")}
            key = {f"{name}_key": server.key} if hasattr(server, "key") else {}
            given = InferenceSettings(**{**address, **key, "provider_request_seconds": 60.0, **settings})
            checks = ImageChecks()
            stack.push_async_callback(checks.close)
            handler = ai_core.handlers(ProviderKit.from_settings(given, checks, stack))[TASK_TYPE_LLM_INTERACTION]
            assert isinstance(handler, ai_core.AiCoreHandler)
            return Scene(server, handler, tmp_path, name)

        yield made


@pytest.mark.parametrize("name", ALL)
async def test_a_model_answers_with_its_tokens_counted(make: Make, name: str) -> None:
    scene = await make(name)
    output, attempt = await scene.run()
    result = output.result.llm_interaction
    assert (result.result_text, result.input_tokens, result.output_tokens) == ("A red dress. ", 12, 5)
    assert output.files == ()
    assert list(output.result.warnings) == []
    assert scene.server.paid == 1
    assert attempt.states == ["SENDING", "DONE"]
    done = attempt.notes[-1]
    assert (done.target, done.operation, done.http_status) == (MODELS[name], "answer", 200)
    assert effect(attempt) == "SUCCESS"


@pytest.mark.parametrize("name", ALL)
async def test_the_answer_is_told_as_it_grows(make: Make, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.inference.providers.language._PAUSE_SECONDS", 0.0)
    scene = await make(name)
    _, attempt = await scene.run()
    assert attempt.texts == ["A ", "A red ", "A red dress. "]
    assert attempt.steps == sorted(attempt.steps)
    assert attempt.steps[-1] < 1


@pytest.mark.parametrize("name", ALL)
async def test_the_model_is_shown_pictures_at_a_size_that_it_takes(make: Make, name: str) -> None:
    scene = await make(name)
    await scene.run(pictures=2)
    shown = pictures_of(name, scene.server.bodies[0])
    assert [image.size for image in shown] == [(1568, 392)] * 2
    assert shown[0].convert("RGB").getpixel((9, 9)) == (0, 128, 128)


def pictures_of(name: str, body: dict[str, Any]) -> list[Image.Image]:
    if name == "openai":
        parts = body["messages"][-1]["content"]
        texts = [part["image_url"]["url"].partition(",")[2] for part in parts if part["type"] == "image_url"]
    elif name == "anthropic":
        texts = [part["source"]["data"] for part in body["messages"][0]["content"] if part["type"] == "image"]
    elif name == "gemini":
        parts = [gemini_server.shown(part) for part in body["contents"][0]["parts"]]
        return [Image.open(io.BytesIO(data)) for data in parts if data is not None]
    else:
        texts = body["messages"][-1]["images"]
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in texts]


async def test_openai_is_asked_by_members_that_all_its_models_take(make: Make) -> None:
    scene = await make("openai")
    await scene.run(temperature=0.3, max_tokens=50)
    body = scene.server.bodies[0]
    assert (body["temperature"], body["max_completion_tokens"]) == (0.3, 50)
    assert body["messages"][0] == {"role": "system", "content": "You know dresses."}
    output, _ = await scene.run(model="gpt-5-mini", max_tokens=50)
    assert "temperature" not in scene.server.bodies[1]
    assert list(output.result.warnings) == ["The model gpt-5-mini takes no temperature: it was left out."]
    assert scene.server.paid == 2


async def test_anthropic_is_told_how_much_to_write_and_a_temperature_where_the_model_takes_one(make: Make) -> None:
    scene = await make("anthropic", anthropic_max_tokens=123)
    await scene.run(temperature=0.3)
    body = scene.server.bodies[0]
    assert (body["max_tokens"], body["temperature"], body["system"]) == (123, 0.3, "You know dresses.")
    output, _ = await scene.run(model="claude-opus-4-7", max_tokens=50)
    assert scene.server.bodies[1]["max_tokens"] == 50
    assert "temperature" not in scene.server.bodies[1]
    assert list(output.result.warnings) == ["The model claude-opus-4-7 takes no temperature: it was left out."]


async def test_gemini_and_ollama_are_asked_by_members_of_their_own(make: Make) -> None:
    scene = await make("gemini")
    await scene.run(temperature=0.3, max_tokens=50)
    config = scene.server.bodies[0]["generationConfig"]
    assert config == {"temperature": 0.3, "maxOutputTokens": 50}
    assert scene.server.bodies[0]["systemInstruction"]["parts"] == [{"text": "You know dresses."}]
    scene = await make("ollama")
    _, attempt = await scene.run(temperature=0.3, max_tokens=50)
    assert scene.server.bodies[0]["options"] == {"temperature": 0.3, "num_predict": 50}
    assert (attempt.notes[-1].cost, attempt.notes[-1].currency) == (0.0, "USD")


CUTS = {
    "openai": ("finish", "length"),
    "anthropic": ("stop", "max_tokens"),
    "gemini": ("finish", "MAX_TOKENS"),
    "ollama": ("done", "length"),
}


@pytest.mark.parametrize("name", ALL)
async def test_an_answer_that_is_cut_is_a_result_that_says_so(make: Make, name: str) -> None:
    scene = await make(name)
    setattr(scene.server, *CUTS[name])
    output, _ = await scene.run()
    assert output.result.llm_interaction.result_text == "A red dress. "
    assert list(output.result.warnings) == ["The answer was cut at the most tokens that it may have."]


@pytest.mark.parametrize("name", ALL)
async def test_tokens_spent_before_the_answer_began_are_not_spent_again(make: Make, name: str) -> None:
    scene = await make(name)
    setattr(scene.server, *CUTS[name])
    scene.server.text = ""
    failed, _ = await scene.fails()
    assert (category(failed), failed.retryable) == ("PROVIDER", False)
    assert "before the answer began" in failed.message


REFUSALS: list[tuple[str, dict[str, Any]]] = [
    ("openai", {"finish": "content_filter", "text": ""}),
    ("openai", {"finish": "content_filter"}),
    ("openai", {"refusal": "I cannot help with that."}),
    ("anthropic", {"stop": "refusal"}),
    *(("gemini", {"finish": reason}) for reason in ("SAFETY", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "RECITATION")),
    ("gemini", {"finish": "MODEL_ARMOR"}),
    ("gemini", {"block": "PROHIBITED_CONTENT"}),
]


@pytest.mark.parametrize(("name", "state"), REFUSALS, ids=str)
async def test_a_refusal_that_comes_as_a_success_is_one(make: Make, name: str, state: dict[str, Any]) -> None:
    scene = await make(name)
    for member, value in state.items():
        setattr(scene.server, member, value)
    failed, attempt = await scene.fails()
    assert (category(failed), failed.retryable, scene.server.paid) == ("CONTENT_POLICY", False, 1)
    assert (attempt.states[-1], effect(attempt)) == ("FAILED", "IGNORED")


def answers(name: str, reply: Reply) -> Misbehaviour:
    return Misbehaviour(name, reply=reply)


OVERLOADED = anthropic_server.error(529, "Overloaded")
EMPTY_STREAM = Reply(200, b"data: [DONE]\n\n", {"content-type": "text/event-stream"})
ROWS = [
    Row.of(base.TOO_MANY, "RATE_LIMIT", True, "IGNORED", 0, 7.0),
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
    Row.of(base.REDIRECT, "PROVIDER", True, "FAILURE", 0),
    Row.of(answers("empty_stream", EMPTY_STREAM), "PROVIDER", True, "FAILURE", 0, only="openai"),
    Row.of(answers("no_quota", openai_server.out_of_credits()), "PROVIDER", False, "FATAL", 0, only="openai"),
    Row.of(
        answers("filtered", openai_server.error(400, "flagged", "content_policy_violation")),
        "CONTENT_POLICY",
        False,
        "IGNORED",
        0,
        only="openai",
    ),
    Row.of(answers("no_balance", anthropic_server.out_of_credits()), "PROVIDER", False, "FATAL", 0, only="anthropic"),
    Row.of(answers("overloaded", OVERLOADED), "PROVIDER", True, "FAILURE", 0, only="anthropic"),
    Row.of(answers("by_body", gemini_server.exhausted(7.5)), "RATE_LIMIT", True, "IGNORED", 0, 7.5, only="gemini"),
    Row.of(
        answers("gone", ollama_server.error(404, "model 'x' not found")),
        "VALIDATION",
        False,
        "IGNORED",
        0,
        only="ollama",
    ),
]
CASES = [pytest.param(name, row, id=f"{name}-{row}") for row in ROWS for name in ALL if row.only in ("", name)]


@pytest.mark.parametrize(("name", "row"), CASES)
async def test_misbehaviour(make: Make, name: str, row: Row) -> None:
    scene = await make(name, provider_request_seconds=1.5 if row.name == base.SLOW.name else 60.0)
    row.arrange(scene.server)
    failed, attempt = await scene.fails()
    if row.state == "UNKNOWN" and name == "ollama":
        # Ollama costs nothing: what is not known of a call to it may be asked again.
        row = replace(row, retryable=True, state="FAILED")
    judge(row, failed, attempt, scene.server)
    assert attempt.states == ["SENDING", row.state]


@pytest.mark.parametrize("name", ALL)
async def test_a_provider_that_cannot_be_reached_was_asked_for_nothing(make: Make, name: str) -> None:
    scene = await make(name, **{f"{name}_url": "http://127.0.0.1:9"})
    failed, attempt = await scene.fails()
    assert (category(failed), failed.retryable, effect(attempt)) == ("PROVIDER", True, "FAILURE")
    assert attempt.states == ["SENDING", "FAILED"]


@pytest.mark.parametrize("name", ["openai", "anthropic", "gemini"])
async def test_a_wrong_key_is_no_mistake_of_the_caller(make: Make, name: str) -> None:
    scene = await make(name, **{f"{name}_key": "wrong-secret"})
    failed, attempt = await scene.fails()
    assert (category(failed), failed.retryable, effect(attempt)) == ("PROVIDER", False, "FATAL")
    assert "wrong-secret" not in failed.message + str(attempt.notes)


@pytest.mark.parametrize("name", ALL)
async def test_a_model_that_there_is_not_is_the_callers_mistake(make: Make, name: str) -> None:
    scene = await make(name)
    failed, _ = await scene.fails(model="unknown-model")
    assert (category(failed), failed.retryable) == ("VALIDATION", False)
    assert "unknown-model" in failed.message


async def test_a_model_is_no_way_to_another_address(make: Make) -> None:
    scene = await make("gemini")
    for model in ("../../v1/files", "a:b?c=", "tunedModels/x", "a/b"):
        failed, _ = await scene.fails(model=model)
        assert category(failed) == "VALIDATION"
    assert scene.server.asked == []


async def test_an_error_within_an_answer_ends_it(make: Make) -> None:
    scene = await make("anthropic")
    scene.server.overloaded = True
    failed, attempt = await scene.fails()
    assert (category(failed), failed.retryable, effect(attempt)) == ("PROVIDER", True, "FAILURE")


async def test_gemini_is_not_asked_to_continue_an_answer_unbidden(make: Make) -> None:
    scene = await make("gemini")
    scene.server.continuation = "dG9rZW4="
    output, _ = await scene.run()
    assert list(output.result.warnings) == ["The answer was cut at the most tokens that it may have."]
    assert scene.server.paid == 1


async def test_an_answer_of_any_size_is_not_read(make: Make) -> None:
    scene = await make("openai", provider_answer_bytes=4096)
    scene.server.text = "word " * 10_000
    failed, attempt = await scene.fails()
    assert (category(failed), failed.retryable, attempt.states[-1]) == ("PROVIDER", False, "UNKNOWN")


async def test_what_an_attempt_sent_before_it_died_is_not_sent_again(make: Make) -> None:
    scene = await make("openai", provider_request_seconds=1.5)
    first = scene.attempt()
    scene.server.misbehave(base.SLOW)
    with pytest.raises(TaskFailed):
        await scene.handler.run(first)
    sending = first.notes[0]
    dead = FakeAttempt(scene.folder, first.spec, rows={sending.id: sending})
    asked = len(scene.server.asked)
    with pytest.raises(TaskFailed) as failed:
        await scene.handler.run(dead)
    assert (category(failed.value), failed.value.retryable) == ("PROVIDER", False)
    assert dead.states == ["UNKNOWN"]
    assert len(scene.server.asked) == asked


async def test_a_worker_without_a_key_says_so(make: Make) -> None:
    scene = await make("ollama")
    scene.name = "openai"
    failed, attempt = await scene.fails()
    assert (category(failed), failed.retryable, attempt.notes) == ("PROVIDER", False, [])
    assert "no credentials" in failed.message


@pytest.mark.parametrize("cost", [float("inf"), float("nan"), 1e300, -1, True])
async def test_a_cost_that_is_no_price_is_not_kept(make: Make, cost: float) -> None:
    scene = await make("openai")
    scene.server.cost = cost
    _, attempt = await scene.run()
    assert not attempt.notes[-1].HasField("cost")


async def test_what_a_reseller_says_of_the_cost_is_kept(make: Make) -> None:
    scene = await make("openai")
    scene.server.cost = 0.25
    _, attempt = await scene.run()
    assert (attempt.notes[-1].cost, attempt.notes[-1].currency) == (0.25, "USD")


async def test_the_official_clients_agree_with_the_servers() -> None:
    """Each server answers its provider's own client, at once and streamed, with the client's own settings."""
    message: Any = [{"role": "user", "content": "What is it?"}]
    async with OpenAiServer() as server, openai.AsyncOpenAI(api_key=server.key, base_url=f"{server.url}/v1") as client:
        answer = await client.chat.completions.create(model="gpt-4.1", messages=message)
        assert answer.choices[0].message.content == server.text
        stream = await client.chat.completions.create(model="gpt-4.1", messages=message, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(pieces).strip() == server.text
        with pytest.raises(openai.BadRequestError, match="max_completion_tokens"):
            await client.chat.completions.create(model="o3", messages=message, max_tokens=5)
    async with (
        AnthropicServer() as claude,
        anthropic.AsyncAnthropic(api_key=claude.key, base_url=claude.url) as asking,
    ):
        said = await asking.messages.create(model="claude-haiku-4-5", max_tokens=9, messages=message)
        assert said.content[0].type == "text"
        assert said.content[0].text == claude.text
        async with asking.messages.stream(model="claude-haiku-4-5", max_tokens=9, messages=message) as events:
            assert (await events.get_final_text()).strip() == claude.text
            assert (await events.get_final_message()).usage.output_tokens == 5
    async with OllamaServer() as llama, ollama.AsyncClient(llama.url) as chatting:
        assert (await chatting.chat("llama3.2", message)).message.content == llama.text
        parts = [part.message.content or "" async for part in await chatting.chat("llama3.2", message, stream=True)]
        assert "".join(parts).strip() == llama.text
        with pytest.raises(ollama.ResponseError, match="not found"):
            await chatting.chat("no-such-model", message)
    async with GeminiServer() as google:
        options = types.HttpOptions(base_url=google.url)
        gemini = genai.Client(enterprise=False, api_key=google.key, http_options=options)
        models = gemini.aio.models
        assert (await models.generate_content(model="gemini-2.5-flash", contents="What is it?")).text == google.text
        chunks = [
            chunk.text or ""
            async for chunk in await models.generate_content_stream(model="gemini-2.5-flash", contents="What is it?")
        ]
        assert "".join(chunks).strip() == google.text
        await gemini.aio.aclose()
        gemini.close()


async def test_the_official_client_agrees_with_the_server_of_pictures() -> None:
    async with GeminiServer() as server:
        client = genai.Client(enterprise=False, api_key=server.key, http_options=types.HttpOptions(base_url=server.url))
        config = types.GenerateContentConfig(
            response_modalities=["IMAGE"], image_config=types.ImageConfig(aspect_ratio="4:3", image_size="2K")
        )
        answer = await client.aio.models.generate_content(model="gemini-3-pro-image", contents="a dress", config=config)
        assert answer.parts is not None
        drawn = [part.inline_data.data for part in answer.parts if part.inline_data is not None]
        assert [Image.open(io.BytesIO(data or b"")).size for data in drawn] == [(64, 64), (2400, 1792)]
        server.block = "PROHIBITED_CONTENT"
        answer = await client.aio.models.generate_content(model="gemini-3-pro-image", contents="a dress", config=config)
        assert answer.prompt_feedback is not None
        assert answer.prompt_feedback.block_reason == types.BlockedReason.PROHIBITED_CONTENT
        await client.aio.aclose()
        client.close()
