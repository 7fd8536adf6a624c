"""LLM_INTERACTION through HTTP: an answer, its tokens, its text as it grows, a cancel, and the loss of the child."""

import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.harness import RunningMesh, post_until_answered, until

pytestmark = pytest.mark.timeout(600)

FRANCE = "What is the capital of France?"


@pytest.fixture(scope="module")
def talking(start_mesh: Callable[..., RunningMesh]) -> RunningMesh:
    return start_mesh(
        ATELIER_WORKER_TASK_TYPES="LLM_INTERACTION",
        ATELIER_TORCH_THREADS="1",
        ATELIER_WORKER_SLOTS="1",
        ATELIER_STEP_DEADLINE_SECONDS="30",
        ATELIER_FIRST_STEP_DEADLINE_SECONDS="60",
    )


@pytest.fixture
def client(talking: RunningMesh) -> Iterator[httpx.Client]:
    with talking.http(f"talk-{uuid.uuid4().hex[:8]}") as made:
        yield made


def ask(client: httpx.Client, prompt: str, **config: Any) -> dict[str, Any]:
    body = {"task_type": "LLM_INTERACTION", "origin_instance": "e2e", "prompt": prompt, "config": config}
    return post_until_answered(client, "/api/v1/tasks/", body, str(uuid.uuid4()))


def ended(client: httpx.Client, task: dict[str, Any]) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        shown = client.get(f"/api/v1/tasks/{task['id']}").json()
        return shown if shown["status"] in ("COMPLETED", "FAILED", "CANCELLED") else None

    return until(look, "the task has ended", 90)


def follow(client: httpx.Client, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the events of a task until its stream ends."""
    with client.stream("GET", f"/api/v1/tasks/{task['id']}/events", timeout=60) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data:"):
                yield json.loads(line.removeprefix("data:"))


def test_it_answers_with_text_and_tokens_and_repeats_itself_at_a_seed(client: httpx.Client) -> None:
    first = ask(client, FRANCE, seed=7, max_tokens=40)
    assert (first["result_text"], first["input_tokens"], first["output_tokens"]) == (None, None, None)
    done = ended(client, first)
    assert done["status"] == "COMPLETED"
    assert "Paris" in done["result_text"]
    assert done["input_tokens"] == 27
    assert 4 <= done["output_tokens"] <= 40
    assert done["warnings"] == []
    assert ended(client, ask(client, FRANCE, seed=7, max_tokens=40))["result_text"] == done["result_text"]


def test_an_answer_that_is_cut_is_completed_with_a_warning(client: httpx.Client) -> None:
    done = ended(client, ask(client, "Tell me a long story about a tailor.", max_tokens=6))
    assert (done["status"], done["output_tokens"]) == ("COMPLETED", 6)
    assert done["warnings"] == ["The answer was cut at 6 tokens (config.max_tokens)."]


def test_the_text_is_seen_before_the_end_and_grows(client: httpx.Client) -> None:
    task = ask(client, "Tell me a long story about a tailor.", max_tokens=150, temperature=0)
    events = list(follow(client, task))
    texts = [event["text"] for event in events if event["text"]]
    whole = events[-1]["task"]["result_text"]
    assert events[-1]["final"]
    assert len(set(texts)) >= 2
    assert all(whole.startswith(text) for text in texts)
    assert len(texts[0]) < len(texts[-1]) <= len(whole)
    assert events[-1]["text"] is None
    before = [event for event in events if event["text"]]
    assert {event["task"]["status"] for event in before} == {"EXECUTING"}
    assert all(event["task"]["result_text"] is None for event in before), "a row has no text before the end"


def test_a_cancel_ends_the_answer_and_frees_the_slot(talking: RunningMesh, client: httpx.Client) -> None:
    task = ask(client, "Tell me a very long story about a tailor and his many sons.", max_tokens=4000, temperature=0)
    for event in follow(client, task):
        if event["text"]:
            break
    assert client.post(f"/api/v1/tasks/{task['id']}/cancel").json()["status"] == "CANCELLED"
    assert ended(client, ask(client, FRANCE))["result_text"], "the slot is free"
    shown = client.get(f"/api/v1/tasks/{task['id']}").json()
    assert (shown["status"], shown["result_text"]) == ("CANCELLED", None)
    until(
        lambda: [each["outcome"] for each in talking.attempts(client, task["id"])] == ["CANCELLED"],
        "its attempt has ended",
    )


def test_an_answer_outlives_its_child_and_there_is_one_result(talking: RunningMesh, client: httpx.Client) -> None:
    task = ask(client, "Tell me a long story about a tailor.", max_tokens=200, temperature=0)
    for event in follow(client, task):
        if event["text"]:
            break
    os.kill(talking.worker_child(), signal.SIGKILL)
    done = ended(client, task)
    assert (done["status"], done["retry_count"]) == ("COMPLETED", 1)
    assert done["result_text"]
    attempts = talking.attempts(client, task["id"])
    assert [each["outcome"] for each in attempts] == ["FAILED", "COMPLETED"]
    finals = [event for event in follow(client, task) if event["final"]]
    assert [event["task"]["result_text"] for event in finals] == [done["result_text"]]


@pytest.mark.parametrize(
    ("members", "path"),
    [
        ({"input_images": ["https://pictures.example/dress.png"]}, "input_images"),
        ({"provider_type": "AI_CORE"}, "provider_type"),
        ({"active_provider_capabilities": ["VISION"]}, "active_provider_capabilities"),
        ({"config": {"temperature": 9}}, "temperature"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
    ],
)
def test_what_cannot_work_is_refused_at_create(client: httpx.Client, members: dict[str, Any], path: str) -> None:
    body = {"task_type": "LLM_INTERACTION", "origin_instance": "e2e", "prompt": FRANCE, **members}
    answer = client.post("/api/v1/tasks/", json=body)
    assert answer.status_code == 422, answer.text
    assert path in answer.json()["detail"][0]["loc"]


@pytest.mark.parametrize(
    ("prompt", "config", "words"),
    [
        (FRANCE, {"model": "gpt"}, "not served here"),
        ("a red dress and a blue coat " * 2000, {}, "holds 8192 in all"),
    ],
)
def test_what_only_the_worker_can_know_fails_once_and_says_why(
    client: httpx.Client, prompt: str, config: dict[str, Any], words: str
) -> None:
    done = ended(client, ask(client, prompt, **config))
    assert (done["status"], done["error_category"], done["retry_count"]) == ("FAILED", "VALIDATION", 0)
    assert words in done["errors"][0]


def test_the_update_takes_the_documented_members_and_no_others(client: httpx.Client) -> None:
    task = ask(client, FRANCE)
    ended(client, task)
    shown = client.get(f"/api/v1/tasks/{task['id']}").json()
    changed = client.put(f"/api/v1/tasks/{task['id']}", json={**shown, "origin_reference": "mine", "priority": 2})
    assert changed.status_code == 200, changed.text
    assert (changed.json()["origin_reference"], changed.json()["priority"]) == ("mine", 2)
    for member in ("subject_model_path", "fal_app_id"):
        assert client.put(f"/api/v1/tasks/{task['id']}", json={member: "a/b"}).status_code == 422
    assert client.put(f"/api/v1/tasks/{task['id']}", json={"retry_count": 5}).status_code == 403
