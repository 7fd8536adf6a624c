"""Who is asked for summaries is checked at the start."""

from __future__ import annotations

from typing import Any

import pytest
from atelier.tasks.v1 import enums_pb2, task_pb2
from pydantic import ValidationError

from services.monitoring.capture.analysis.text_calls import TextSource
from services.monitoring.capture.config import CaptureSettings


def settings(**given: Any) -> CaptureSettings:
    shared = {"auth_secret": "x" * 40, "database_url": "postgresql://x", "nats_url": "nats://x"}
    return CaptureSettings(**(shared | given))


def test_the_local_model_is_asked_by_default() -> None:
    task = task_pb2.CreateTask()
    made = settings(capture_summary_config={"model": "larger"})
    TextSource(made.capture_summary, made.capture_summary_config).write(task)
    assert not task.HasField("provider_type")
    assert (task.config["model"], task.config["temperature"]) == ("larger", 0.0)


def test_a_provider_is_asked_with_its_settings() -> None:
    task = task_pb2.CreateTask()
    TextSource("AI_CORE", {"ai_provider": "openai", "model": "words"}).write(task)
    assert task.provider_type == enums_pb2.PROVIDER_TYPE_AI_CORE
    assert task.provider_config.ai_core.model == "words"
    assert settings(capture_summary="NONE").capture_summary == "NONE"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"capture_summary": "FASHN_STANDARD"},
            "ATELIER_CAPTURE_SUMMARY must be NONE or one of AI_CORE, LOCAL, VERTEX",
        ),
        ({"capture_summary": "nobody"}, "ATELIER_CAPTURE_SUMMARY must be NONE or one of"),
        (
            {"capture_summary": "AI_CORE", "capture_summary_config": {"modell": "words"}},
            "ATELIER_CAPTURE_SUMMARY_CONFIG must be an object with settings of AI_CORE",
        ),
        ({"capture_webhook_url": "ftp://hooks.example"}, "capture_webhook_url"),
    ],
)
def test_what_cannot_be_asked_refuses_the_start(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        settings(**given)
