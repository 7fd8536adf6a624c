"""What an LLM_INTERACTION task asks the model, and what it makes of the answer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from atelier.tasks.v1.enums_pb2 import ErrorCategory
from atelier.tasks.v1.llm_interaction_pb2 import CreateLLMInteractionTask
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from google.protobuf.struct_pb2 import Struct

from meshkit.worker.handlers import Need, Output, TaskCancelled, TaskFailed
from modelkit.chat import Answer, ChatObserver, ChatRequest
from modelkit.errors import ModelError
from services.inference.tasktypes.llm_interaction import LlmInteractionHandler


class Asked:
    """A model that writes down what it is asked."""

    def __init__(self, answer: Answer | Exception | None) -> None:
        self._answer = answer
        self.requests: list[ChatRequest] = []

    def answer(self, request: ChatRequest, observer: ChatObserver) -> Answer | None:
        self.requests.append(request)
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


class TextTask:
    """One attempt, as its handler sees it."""

    def __init__(self, config: dict[str, Any] | None = None, **fields: Any) -> None:
        settings = Struct()
        settings.update(config or {})
        self.job_id = "job"
        self.spec = CreateTask(
            llm_interaction=CreateLLMInteractionTask(prompt="Name a colour.", **fields), config=settings
        )
        self.task = Task(id="0198c0de-0000-7000-8000-000000000001")
        self.inputs: Mapping[str, Path] = {}
        self.refused_inputs: Mapping[str, str] = {}
        self.folder = Path()

    def progress(self, step: int, total: int, preview: bytes | None = None, *, text: str | None = None) -> None:
        raise AssertionError("the model tells the progress")

    def upscaling(self) -> None:
        raise AssertionError("there is no picture")

    def cancelled(self) -> bool:
        return False


ANSWER = Answer("Blue.", 9, 2, None)


def run(context: TextTask, answer: Answer | Exception | None = ANSWER) -> tuple[Any, list[ChatRequest]]:
    model = Asked(answer)
    [outcome] = LlmInteractionHandler().run([context], {"model": model})
    return outcome, model.requests


def test_an_answer_is_text_and_counts_and_no_file() -> None:
    outcome, _ = run(TextTask())
    assert isinstance(outcome, Output)
    made = outcome.result.llm_interaction
    assert (made.result_text, made.input_tokens, made.output_tokens) == ("Blue.", 9, 2)
    assert not outcome.files
    assert not outcome.result.warnings


def test_a_system_prompt_of_its_own_is_used_where_the_caller_has_none() -> None:
    _, [request] = run(TextTask())
    assert (request.prompt, request.system) == ("Name a colour.", "You are a helpful assistant.")
    _, [request] = run(TextTask(system_prompt="Answer in French."))
    assert request.system == "Answer in French."
    _, [request] = run(TextTask(system_prompt=""))
    assert request.system == ""


def test_config_steers_the_answer_and_has_defaults() -> None:
    _, [request] = run(TextTask())
    assert (request.max_tokens, request.temperature, request.top_p) == (512, 0.2, 0.9)
    config = {"max_tokens": 8, "temperature": 0, "top_p": 0.5, "seed": 2**53, "model": "other", "more": [1]}
    context = TextTask(config)
    _, [request] = run(context)
    assert (request.max_tokens, request.temperature, request.top_p, request.seed) == (8, 0, 0.5, 2**53)
    assert LlmInteractionHandler().needs(context.spec, context.task) == (Need("model", "language", "other"),)


def test_a_seed_that_is_absent_is_the_same_on_every_attempt_and_another_for_another_task() -> None:
    _, [first] = run(TextTask())
    _, [second] = run(TextTask())
    other = TextTask()
    other.task.id = "0198c0de-0000-7000-8000-000000000002"
    _, [third] = run(other)
    assert first.seed == second.seed != third.seed


def test_the_config_as_it_stands_counts_and_not_the_one_of_the_request() -> None:
    context = TextTask({"max_tokens": 8})
    context.task.config.update({"max_tokens": 9})
    _, [request] = run(context)
    assert request.max_tokens == 9


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"temperature": 2.5}, "config.temperature: must be greater than or equal to 0 and less than or equal to 2"),
        ({"temperature": "hot"}, "config.temperature: Input should be a valid number"),
        ({"top_p": 0}, "config.top_p: must be greater than 0 and less than or equal to 1"),
        ({"top_p": 1.1}, "config.top_p: must be greater than 0 and less than or equal to 1"),
        ({"max_tokens": 0}, "config.max_tokens: must be greater than or equal to 1 and less than or equal to 8192"),
        ({"max_tokens": 1.5}, "config.max_tokens: Input should be a valid integer"),
        ({"seed": -1}, f"config.seed: must be greater than or equal to 0 and less than or equal to {2**53}"),
    ],
)
def test_config_out_of_bounds_is_the_callers_fault(config: dict[str, Any], message: str) -> None:
    outcome, requests = run(TextTask(config))
    assert isinstance(outcome, TaskFailed)
    assert (outcome.message, outcome.category) == (message, ErrorCategory.ERROR_CATEGORY_VALIDATION)
    assert not outcome.retryable
    assert not requests


def test_a_model_that_is_no_text_is_refused_before_any_is_loaded() -> None:
    context = TextTask({"model": 3})
    with pytest.raises(TaskFailed, match=r"config\.model: Input should be a valid string"):
        LlmInteractionHandler().needs(context.spec, context.task)


@pytest.mark.parametrize(
    ("cut", "warning"),
    [
        ("max_tokens", "The answer was cut at 2 tokens (config.max_tokens)."),
        ("context", "The answer was cut after 2 tokens: with the prompt they fill what the model can hold."),
    ],
)
def test_an_answer_that_is_cut_is_a_result_with_a_warning(cut: Any, warning: str) -> None:
    outcome, _ = run(TextTask(), Answer("Blue", 9, 2, cut))
    assert isinstance(outcome, Output)
    assert list(outcome.result.warnings) == [warning]


def test_pictures_are_refused_by_the_worker_too() -> None:
    outcome, requests = run(TextTask(input_images=["a.png"]))
    assert isinstance(outcome, TaskFailed)
    assert outcome.category == ErrorCategory.ERROR_CATEGORY_VALIDATION
    assert "input_images" in outcome.message
    assert not requests


def test_a_cancelled_answer_and_a_models_failure_are_told_as_such() -> None:
    assert isinstance(run(TextTask(), None)[0], TaskCancelled)
    outcome, _ = run(TextTask(), ModelError("The prompt is too long."))
    assert isinstance(outcome, TaskFailed)
    assert (outcome.message, outcome.retryable) == ("The prompt is too long.", False)
