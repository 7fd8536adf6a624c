"""Tasks through HTTP that models of others execute: a text as it grows, and pictures, or the device after a refusal."""

import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.bodies import data_url, photo, stored_picture
from tests.e2e.harness import RunningMesh, ended_task, post_until_answered
from tests.e2e.test_language import follow
from tests.providers.called import CalledProviders
from tests.providers.gemini import GeminiServer
from tests.providers.ollama import OllamaServer

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def ollama(called: CalledProviders) -> Iterator[OllamaServer]:
    """Ollama, which writes three words a second."""
    called.ollama.pause = 0.3
    yield called.ollama
    called.ollama.pause = 0.0


@pytest.fixture
def gemini(called: CalledProviders) -> Iterator[GeminiServer]:
    """Gemini, as it is when nothing is wrong with it."""
    yield called.gemini
    called.gemini.finish = "STOP"


def created(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    return post_until_answered(client, "/api/v1/tasks/", {"origin_instance": "e2e", **fields}, str(uuid.uuid4()))


def edited(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    task = created(
        client,
        task_type="EDITING",
        prompt="make it blue",
        base_image=data_url(photo(64)),
        width=96,
        height=64,
        provider_type="VERTEX",
        **fields,
    )
    return ended_task(client, task["id"])


def test_a_model_answers_and_its_text_is_seen_as_it_grows(device_mesh: RunningMesh, ollama: OllamaServer) -> None:
    paid = ollama.paid
    with device_mesh.http("asks-a-model") as client:
        task = created(
            client,
            task_type="LLM_INTERACTION",
            prompt="What is it?",
            provider_type="AI_CORE",
            provider_config={"ai_provider": "ollama", "model": "llama3.2", "max_tokens": 50},
        )
        texts = [event["text"] for event in follow(client, task) if event["text"]]
        done = ended_task(client, task["id"])
        [attempt] = device_mesh.attempts(client, task["id"])
    assert done["status"] == "COMPLETED", done["errors"]
    assert done["result_text"].strip() == ollama.text
    assert (done["input_tokens"], done["output_tokens"], done["warnings"]) == (12, 5, [])
    assert (done["executor_instance"], attempt["outcome"]) == ("providers/ai_core", "COMPLETED")
    assert len(texts) >= 2
    assert texts == sorted(texts, key=len)
    assert all(done["result_text"].startswith(text) for text in texts)
    assert ollama.paid == paid + 1


def test_what_a_model_would_refuse_is_refused_at_create(device_mesh: RunningMesh, ollama: OllamaServer) -> None:
    asked = len(ollama.asked)
    with device_mesh.http("asks-wrongly") as client:
        answer = client.post(
            "/api/v1/tasks/",
            json={
                "task_type": "LLM_INTERACTION",
                "origin_instance": "e2e",
                "prompt": "What is it?",
                "provider_type": "AI_CORE",
                "provider_config": {"ai_provider": "anthropic", "model": "claude-haiku-4-5", "temperature": 1.5},
            },
        )
    assert answer.status_code == 422
    assert "temperature is at most 1" in answer.text
    assert len(ollama.asked) == asked


def test_a_picture_is_edited_by_gemini(device_mesh: RunningMesh, gemini: GeminiServer) -> None:
    paid = gemini.paid
    with device_mesh.http("edits-by-gemini") as client:
        task = edited(client, provider_config={"aspect_ratio": "3:2"})
        assert task["status"] == "COMPLETED", task["errors"]
        assert (task["provider_type"], task["provider_config"]["image_size"]) == ("VERTEX", "1K")
        assert stored_picture(client, task["result_image_path"]).size == (96, 64)
    assert gemini.paid == paid + 1


def test_the_device_edits_what_gemini_refuses(device_mesh: RunningMesh, gemini: GeminiServer) -> None:
    gemini.finish = "IMAGE_SAFETY"
    paid = gemini.paid
    with device_mesh.http("refused-by-gemini") as client:
        task = edited(client, fallback_provider_type="LOCAL")
        assert task["status"] == "COMPLETED", task["errors"]
        assert task["provider_type"] == "LOCAL"
        assert stored_picture(client, task["result_image_path"]).size == (96, 64)
        first, second = device_mesh.attempts(client, task["id"])
        assert (first["outcome"], second["outcome"]) == ("FAILED", "COMPLETED")
        refused = edited(client)
    assert (refused["status"], refused["error_category"]) == ("FAILED", "CONTENT_POLICY")
    # Once each: a refusal is not asked for again.
    assert gemini.paid == paid + 2
