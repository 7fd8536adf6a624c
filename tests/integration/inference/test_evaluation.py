"""The evaluation role behind the gateway: over HTTP, with pictures as data, addresses and objects."""

import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from meshkit.staging import STAGING_FOLDER
from tests.conftest import S3Store
from tests.integration.inference.evaluation_server import PHOTO, TENANT, RunningEvaluation, photo_data, started

ROOT = Path(__file__).parents[2]
MEMBERS = json.loads((ROOT / "contract" / "documented_surface.json").read_text(encoding="utf-8"))["schemas"]


def large_photo() -> str:
    """The photo as a file that the gateway stages."""
    held = io.BytesIO()
    with Image.open(PHOTO) as photo:
        photo.resize((880, 1024)).save(held, "PNG", compress_level=0)
    return base64.b64encode(held.getvalue()).decode()


@pytest.fixture
async def running(s3: S3Store) -> AsyncIterator[RunningEvaluation]:
    async with AsyncExitStack() as stack:
        yield await started(stack, s3)


async def test_a_photo_is_judged_by_the_networks(running: RunningEvaluation) -> None:
    answer = await running.evaluate(image_data=photo_data(), include_descriptions=True)
    assert answer.status_code == 200
    found = answer.json()
    assert set(found) == set(MEMBERS["EvaluationResponse"]["fields"])
    assert found["success"] is True
    assert (found["detected_framing"], found["detected_view_angle"]) == ("upper_body", "front")
    assert found["matches_expected"] is True
    assert (found["human_detected"], found["number_of_people"]) == (True, 1)
    assert found["collage_detected"] is False
    assert found["evaluation_time_ms"] > 0
    confidences = [found["shot_type_confidence"], found["human_presence_confidence"]]
    assert found["confidence_summary"] == pytest.approx(sum(confidences) / 2, abs=0.002)
    # What no network here judges is null, and never guessed.
    unjudged = {name for name, value in found.items() if value is None}
    assert unjudged == {
        *("anatomy_correct", "anatomy_issues", "anatomy_confidence", "detected_gender", "gender_confidence"),
        *("garment_description", "subject_description", "scene_description", "error"),
    }
    health = (await running.health()).json()
    assert set(health) == set(MEMBERS["HealthStatus"]["fields"])
    assert (health["is_healthy"], health["total_evaluations"], health["success_rate"]) == (True, 1, 1.0)
    assert health["circuit_breaker_state"] == "closed"
    assert health["average_response_time"] == pytest.approx(found["evaluation_time_ms"] / 1000, abs=0.001)


async def test_another_shot_than_expected_does_not_match(running: RunningEvaluation) -> None:
    answer = await running.evaluate(image_data=photo_data(), expected_framing="full_body", expected_gender=None)
    assert answer.json()["matches_expected"] is False


async def test_a_large_picture_is_staged_and_gone_afterwards(running: RunningEvaluation) -> None:
    answer = await running.evaluate(image_data=large_photo())
    assert answer.json()["detected_framing"] == "upper_body"
    assert await running.store.list(TENANT, STAGING_FOLDER) == []
    # What is refused after it was staged leaves nothing either.
    refused = await running.evaluate("?provider=FASHN_STANDARD", image_data=large_photo())
    assert refused.status_code == 422
    assert await running.store.list(TENANT, STAGING_FOLDER) == []


async def test_a_picture_in_storage_is_judged_and_anothers_is_not_found(running: RunningEvaluation) -> None:
    await running.store.put(TENANT, "looks/anna.jpg", PHOTO.read_bytes(), "image/jpeg")
    await running.store.put("globex", "looks/theirs.jpg", PHOTO.read_bytes(), "image/jpeg")
    answer = await running.evaluate(image_url="looks/anna.jpg")
    assert answer.json()["number_of_people"] == 1
    for path in ("looks/theirs.jpg", "looks/none.jpg", "../globex/looks/theirs.jpg", f"{STAGING_FOLDER}/x"):
        refused = await running.evaluate(image_url=path)
        assert refused.status_code == 422
        assert refused.json()["detail"][0]["loc"] == ["body", "image_url"]


async def test_the_data_wins_over_the_address(running: RunningEvaluation) -> None:
    answer = await running.evaluate(image_data=photo_data(), image_url="looks/none.jpg")
    assert answer.status_code == 200


BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["body"]),
    ({"image_data": None, "image_url": None}, ["body"]),
    ({"image_data": "bm8gcGljdHVyZQ=="}, ["body", "image_data"]),
    ({"image_data": "no base64"}, ["body", "image_data"]),
    ({"image_url": "ftp://example.com/a.png"}, ["body", "image_url"]),
    ({"image_url": "http://127.0.0.1:1/a.png"}, ["body", "image_url"]),
    ({"image_url": "http://169.254.169.254/latest"}, ["body", "image_url"]),
    ({"image_data": "AAAA", "expected_framing": "sideways"}, ["body", "expected_framing"]),
    ({"image_data": "AAAA", "expected_framing": None}, ["body", "expected_framing"]),
    ({"image_data": "AAAA", "expected_gender": "male"}, ["body", "expected_gender"]),
]


async def test_bad_input_is_refused(running: RunningEvaluation) -> None:
    for members, loc in BAD:
        answer = await running.evaluate(**members)
        assert answer.status_code == 422, (members, answer.text)
        assert answer.json()["detail"][0]["loc"] == loc, members
    assert (await running.health()).json()["total_evaluations"] == 0


async def test_who_does_not_evaluate_here_is_refused(running: RunningEvaluation) -> None:
    for provider in ("FASHN_STANDARD", "AI_CORE", "nobody"):
        for answer in (
            await running.evaluate(f"?provider={provider}", image_data=photo_data()),
            await running.health(f"?provider={provider}"),
        ):
            assert answer.status_code == 422
            assert answer.json()["detail"][0]["loc"] == ["query", "provider"]
    named = await running.evaluate("?provider=LOCAL", image_data=photo_data())
    assert named.json()["success"] is True


async def test_a_picture_of_too_many_pixels_is_refused() -> None:
    async with AsyncExitStack() as stack:
        running = await started(stack, None, evaluation_max_pixels=10_000)
        answer = await running.evaluate(image_data=photo_data())
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["body", "image_data"]


async def test_a_token_is_asked_for(running: RunningEvaluation) -> None:
    del running.client.headers["authorization"]
    assert (await running.evaluate(image_data=photo_data())).status_code == 401
    assert (await running.health()).status_code == 401
