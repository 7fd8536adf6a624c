import json
from functools import partial
from typing import Any

import pytest
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_VALIDATION
from atelier.tasks.v1.providers_pb2 import FreepikMagnificConfig, FreepikMagnificPrecisionConfig, ProviderConfig
from atelier.tasks.v1.refine_pb2 import CreateRefineTask
from atelier.tasks.v1.task_pb2 import CreateTask, Task

from meshkit.worker.handlers import TaskFailed
from services.inference.providers import freepik_magnific, freepik_magnific_precision
from services.inference.providers.errors import Fault, ProviderError
from services.inference.providers.freepik import accepted, answer, factor_of, refusal, standing
from services.inference.providers.http import ProviderReply
from services.inference.providers.paid import Standing

FACTORS, LIMIT = freepik_magnific.FACTORS, freepik_magnific.MAX_PIXELS


def reply(document: object, status: int = 200, *, paid: bool = False) -> ProviderReply:
    return ProviderReply("Freepik", status, {}, json.dumps(document).encode(), paid)


@pytest.mark.parametrize(
    ("size", "wanted", "factor"),
    [
        ((100, 100), (200, 200), 2),
        ((100, 100), (400, 400), 4),
        ((100, 100), (800, 800), 8),
        ((100, 100), (1600, 1600), 16),
        ((100, 100), (150, 150), 2),
        ((100, 100), (300, 300), 4),
        ((100, 100), (50, 50), 2),
        ((100, 100), (2000, 2000), 16),  # the rest is enlarged here
        ((101, 67), (303, 201), 4),
        ((1001, 1001), (2002, 2002), 2),
        ((1600, 1600), (4800, 4800), 2),  # four times would be too large there, and thrice is not
        ((500, 1000), (2000, 1000), 4),
    ],
)
def test_the_factor_reaches_the_size_where_there_is_room(
    size: tuple[int, int], wanted: tuple[int, int], factor: int
) -> None:
    assert factor_of(size, wanted, FACTORS, LIMIT) == factor


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((2000, 2000), (8000, 8000)),
        ((5031, 5030), (5031, 5030)),
        ((2520, 2520), (2600, 2600)),  # twice is the least that it enlarges by
        ((100, 100), (5031, 5030)),
    ],
)
def test_what_would_be_too_large_is_refused_before_it_is_paid(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    with pytest.raises(TaskFailed, match=r"at most 25\.3 million pixels") as failed:
        factor_of(size, wanted, FACTORS, LIMIT)
    assert (failed.value.category, failed.value.retryable) == (ERROR_CATEGORY_VALIDATION, False)


def creative(prompt: str | None = None, **settings: Any) -> dict[str, Any]:
    spec = CreateTask(refine=CreateRefineTask(upscale_prompt=prompt))
    task = Task(provider_config=ProviderConfig(freepik_magnific=FreepikMagnificConfig(**settings)))
    upscale = freepik_magnific.choose(spec, task, (100, 80), (250, 200))
    assert upscale.path == "/v1/ai/image-upscaler"
    return dict(upscale.body)


def test_the_creative_upscaler_is_sent_every_setting() -> None:
    assert creative() == {
        "scale_factor": "4x",
        "optimized_for": "standard",
        "creativity": 0,
        "hdr": 0,
        "resemblance": 0,
        "fractality": 0,
        "engine": "automatic",
    }
    chosen: dict[str, Any] = {
        "creativity": -3,
        "hdr": 4,
        "resemblance": 10,
        "fractality": -10,
        "engine": "magnific_sharpy",
        "optimized_for": "3d_renders",
    }
    assert chosen.items() <= creative(**chosen).items()


def test_the_tasks_prompt_comes_before_that_of_the_settings() -> None:
    assert "prompt" not in creative()
    assert creative(default_prompt="sharp")["prompt"] == "sharp"
    assert creative("a face", default_prompt="sharp")["prompt"] == "a face"


def test_the_precise_upscaler_is_sent_no_factor_by_its_first_version() -> None:
    settings = FreepikMagnificPrecisionConfig(sharpen=1, default_prompt="sharp")
    task = Task(provider_config=ProviderConfig(freepik_magnific_precision=settings))
    choose = freepik_magnific_precision.choose
    first = choose(None, CreateTask(), task, (100, 80), (250, 200))
    assert first.path == "/v1/ai/image-upscaler-precision"
    assert first.body == {"sharpen": 1, "smart_grain": 7, "ultra_detail": 30}
    second = partial(choose, "photo")(CreateTask(), Task(), (100, 80), (250, 200))
    assert second.path == "/v1/ai/image-upscaler-precision-v2"
    assert second.body == {"sharpen": 50, "smart_grain": 7, "ultra_detail": 30, "scale_factor": 3, "flavor": "photo"}


@pytest.mark.parametrize(
    ("status", "found"),
    [
        ("CREATED", Standing(queued=True)),
        ("IN_PROGRESS", Standing()),
        ("COMPLETED", Standing(finished=True)),
        ("A_STAGE_TO_COME", Standing()),
    ],
)
def test_stages_are_told_apart(status: str, found: Standing) -> None:
    assert standing(reply({"data": {"status": status, "generated": []}})) == found


def test_a_task_that_failed_may_be_tried_again() -> None:
    with pytest.raises(ProviderError) as error:
        standing(reply({"data": {"status": "FAILED", "generated": []}}))
    assert (error.value.fault, error.value.retryable) == (Fault.FAILED, True)


@pytest.mark.parametrize("made", [None, [], [""], [3], "https://x/1.png"])
def test_a_result_without_a_picture_is_no_success(made: object) -> None:
    with pytest.raises(ProviderError) as error:
        answer(reply({"data": {"status": "COMPLETED", "generated": made}}))
    assert error.value.fault is Fault.EMPTY


@pytest.mark.parametrize("document", [{}, {"data": {}}, {"data": {"task_id": 7}}, {"data": []}, [], None])
def test_an_answer_without_a_name_may_have_been_paid(document: object) -> None:
    with pytest.raises(ProviderError) as error:
        accepted(reply(document, paid=True))
    assert (error.value.fault, error.value.retryable) == (Fault.UNKNOWN, False)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"message": "Invalid API key"}, "Invalid API key"),
        ({"problem": {"message": "m", "invalid_params": [{"name": "image", "reason": "too large"}]}}, "too large"),
        ({"message": "m", "invalid_params": [{"reason": "one"}, {"reason": "two"}, 3]}, "one; two"),
        ([1], None),
        ({"message": 7}, None),
    ],
)
def test_freepiks_own_words_are_told(document: object, said: str | None) -> None:
    message = refusal(reply(document, 400, paid=True)).message
    assert message.endswith(f"It says: {said}") if said else "It says" not in message
