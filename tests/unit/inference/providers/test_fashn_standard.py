import json
import re
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_VALIDATION
from google.protobuf.struct_pb2 import Struct

from meshkit.fashn import MODELS
from meshkit.images.checks import ImageChecks
from meshkit.worker.handlers import TaskFailed
from services.inference.config import InferenceSettings
from services.inference.providers.errors import Fault, ProviderError
from services.inference.providers.fashn_standard import (
    CREDITS_HEADER,
    _pacing,
    accepted,
    answer,
    handlers,
    read_edit,
    standing,
)
from services.inference.providers.http import ProviderReply
from services.inference.providers.kit import ProviderKit
from services.inference.providers.paid import Standing


def reply(document: object, headers: Mapping[str, str] | None = None, *, paid: bool = False) -> ProviderReply:
    return ProviderReply("FASHN", 200, headers or {}, json.dumps(document).encode(), paid)


def config(**members: Any) -> Struct:
    found = Struct()
    found.update(members)
    return found


def edit(members: Struct, *, references: int = 1, default: str = "tryon-v1.6") -> dict[str, Any]:
    found = read_edit(members, default=default, prompt="blue", seed=7, references=references)
    return found.document("picture", "garment" if references else None)


def test_the_picture_and_the_first_reference_go_by_the_models_own_names() -> None:
    assert edit(config()) == {
        "model_name": "tryon-v1.6",
        "inputs": {"model_image": "picture", "garment_image": "garment", "seed": 7, "output_format": "png"},
    }
    assert edit(config(), default="edit", references=0)["inputs"] == {
        "image": "picture",
        "prompt": "blue",
        "seed": 7,
        "output_format": "png",
    }


def test_further_inputs_are_passed_on() -> None:
    chosen = {"category": "tops", "moderation_level": "permissive", "mode": "quality", "segmentation_free": False}
    inputs = edit(config(fashn=chosen))["inputs"]
    assert chosen.items() <= inputs.items()


def test_an_empty_choice_is_none() -> None:
    assert edit(config(fashn=None)) == edit(config())
    assert edit(config(fashn={"model": None, "mode": None})) == edit(config())


@pytest.mark.parametrize(
    ("members", "references", "says"),
    [
        ({"model": "tryon-v9"}, 1, "config.fashn.model must be one of tryon-v1.6"),
        ({"model": 3}, 1, "config.fashn.model"),
        ({"mode": "fast"}, 1, "config.fashn.mode must be one of performance"),
        ({"segmentation_free": "no"}, 1, "config.fashn.segmentation_free must be true or false"),
        ({"resolution": "4k"}, 1, "no member resolution for tryon-v1.6"),
        ({"webhook_url": "https://example.com"}, 1, "no member webhook_url"),
        ({"model": "tryon-max", "generation_mode": "fast"}, 1, "config.fashn.generation_mode"),
        ({}, 0, "tryon-v1.6 needs a reference image"),
    ],
)
def test_what_fashn_would_refuse_is_refused_before_it_is_sent(
    members: dict[str, Any], references: int, says: str
) -> None:
    with pytest.raises(TaskFailed, match=re.escape(says)) as failed:
        edit(config(fashn=members), references=references)
    assert (failed.value.category, failed.value.retryable) == (ERROR_CATEGORY_VALIDATION, False)


def test_a_choice_that_is_no_object_is_refused() -> None:
    with pytest.raises(TaskFailed, match="must be an object"):
        edit(config(fashn="tryon-max"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [({}, "needs ATELIER_FASHN_KEY"), ({"fashn_key": "k", "fashn_model": "tryon-v9"}, "ATELIER_FASHN_MODEL must be")],
)
async def test_a_worker_without_its_key_or_with_an_unknown_model_does_not_start(
    settings: dict[str, str], says: str
) -> None:
    async with AsyncExitStack() as stack:
        kit = ProviderKit.from_settings(InferenceSettings.model_validate(settings), ImageChecks(), stack)
        with pytest.raises(ValueError, match=says):
            handlers(kit)


def test_the_default_model_of_the_settings_is_known() -> None:
    assert InferenceSettings().fashn_model in MODELS


@pytest.mark.parametrize("interval", [1, 2, 60])
def test_a_prediction_is_looked_at_no_more_often_than_the_caller_says(interval: int) -> None:
    pacing = _pacing(interval)
    assert all(interval <= pacing.pause(looks) <= interval * 1.5 for looks in range(50))


@pytest.mark.parametrize(
    ("status", "found"),
    [
        ("starting", Standing(queued=True)),
        ("in_queue", Standing(queued=True)),
        ("processing", Standing()),
        ("completed", Standing(finished=True)),
        ("a stage to come", Standing()),
        (None, Standing()),
    ],
)
def test_stages_are_told_apart(status: str | None, found: Standing) -> None:
    assert standing(reply({"id": "1", "status": status})) == found


@pytest.mark.parametrize(
    ("header", "cost"), [("2", 2.0), ("0", 0.0), (None, None), ("", None), ("many", None), ("-3", None), ("nan", None)]
)
def test_credits_are_told_where_they_can_be_read(header: str | None, cost: float | None) -> None:
    headers = {} if header is None else {CREDITS_HEADER: header}
    found = answer(reply({"status": "completed", "output": ["https://cdn/1.png"]}, headers))
    assert (found.value, found.cost, found.currency) == ("https://cdn/1.png", cost, "credits")


@pytest.mark.parametrize("output", [None, [], [""], [3], "https://cdn/1.png", {"url": "x"}])
def test_a_result_without_a_picture_is_no_success(output: object) -> None:
    with pytest.raises(ProviderError) as error:
        answer(reply({"status": "completed", "output": output}))
    assert error.value.fault is Fault.EMPTY


@pytest.mark.parametrize("document", [{}, {"id": 7}, [], "id", None])
def test_a_run_without_a_name_may_have_been_paid(document: object) -> None:
    with pytest.raises(ProviderError) as error:
        accepted(reply(document, paid=True))
    assert (error.value.fault, error.value.retryable) == (Fault.UNKNOWN, False)
