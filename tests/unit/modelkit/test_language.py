"""The packaged language model by llama.cpp, and what a GGUF file says of itself."""

import signal
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from modelkit.card import GGUF, ModelCard, read_card
from modelkit.chat import Answer, ChatRequest
from modelkit.device import Device
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.family import Source
from modelkit.gguf import read_header
from modelkit.language import LanguageFamily, _check, _packaged
from modelkit.llama import LlamaChat

DEVICE = Device("cpu", 1)
PACKAGED = Source(LanguageFamily.packaged[0])


class Listener:
    def __init__(self, stop_at: int | None = None) -> None:
        self.steps: list[tuple[int, int]] = []
        self.texts: list[str] = []
        self._stop_at = stop_at

    def progress(self, step: int, total: int, *, text: str | None = None) -> None:
        self.steps.append((step, total))
        if text is not None:
            self.texts.append(text)

    def cancelled(self) -> bool:
        return self._stop_at is not None and len(self.texts[-1:]) > 0 and self.steps[-1][0] >= self._stop_at


def ask(
    prompt: str,
    *,
    system: str = "You are a helpful assistant.",
    max_tokens: int = 24,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 1,
    frequency_penalty: float | None = None,
) -> ChatRequest:
    return ChatRequest(prompt, system, max_tokens, temperature, top_p, seed, frequency_penalty)


@pytest.fixture(scope="module")
def model() -> LlamaChat:
    before = signal.getsignal(signal.SIGTERM)
    loaded = LanguageFamily().load(PACKAGED, DEVICE)
    assert signal.getsignal(signal.SIGTERM) is before
    assert isinstance(loaded, LlamaChat)
    return loaded


def answered(model: LlamaChat, request: ChatRequest, listener: Listener | None = None) -> Answer:
    answer = model.answer(request, listener or Listener())
    assert answer is not None
    return answer


def test_it_answers_and_counts_the_tokens_of_prompt_and_answer(model: LlamaChat) -> None:
    listener = Listener()
    answer = answered(model, ask("What is the capital of France?"), listener)
    assert "Paris" in answer.text
    assert answer.cut is None
    # The chat template puts 20 tokens around the prompt and its system prompt.
    assert answer.input_tokens == 27
    assert 5 <= answer.output_tokens < 24
    longer = answered(model, ask("What is the capital of France? Tell me."))
    assert longer.input_tokens == 27 + 3
    assert listener.texts[-1] == answer.text
    assert all(later.startswith(sooner) for sooner, later in zip(listener.texts, listener.texts[1:], strict=False))
    assert [step for step, _ in listener.steps] == sorted(step for step, _ in listener.steps)


def test_a_seed_repeats_an_answer_whatever_was_asked_before(model: LlamaChat) -> None:
    story = ask("Write a short story.", temperature=1.0, top_p=0.95, seed=(1 << 53) - 1)
    first = answered(model, story)
    answered(model, ask("Write a short story about a dog."))
    assert answered(model, story) == first
    assert answered(model, ask("Write a short story.", temperature=1.0, top_p=0.95, seed=7)).text != first.text


def test_an_answer_is_cut_at_max_tokens_and_says_so(model: LlamaChat) -> None:
    answer = answered(model, ask("Tell me a long story.", max_tokens=5))
    assert (answer.output_tokens, answer.cut) == (5, "max_tokens")


def test_an_answer_that_would_go_round_in_circles_ends(model: LlamaChat) -> None:
    poem = ask("Write a poem about wool.", max_tokens=160)
    circling = answered(model, replace(poem, frequency_penalty=0.0))
    lines = circling.text.splitlines()
    assert circling.cut == "max_tokens"
    assert len(set(lines)) < len(lines)
    ending = answered(model, poem)
    assert ending.cut is None
    assert len(set(ending.text.splitlines())) == len(ending.text.splitlines())


def test_a_cancel_ends_the_answer_within_a_token(model: LlamaChat) -> None:
    listener = Listener(stop_at=4)
    assert model.answer(ask("Tell me a very long story.", max_tokens=400), listener) is None
    assert listener.steps[-1][0] == 4


def test_one_that_waits_for_its_turn_is_cancelled_at_once(model: LlamaChat) -> None:
    class Impatient(Listener):
        def cancelled(self) -> bool:
            return True

    with model._turn:
        assert model.answer(ask("hello"), Impatient()) is None


def test_several_threads_take_turns(model: LlamaChat) -> None:
    answers: list[Answer | None] = []
    questions = ["What is the capital of France?", "What is the capital of Italy?"]
    threads = [
        threading.Thread(target=lambda one=one: answers.append(model.answer(ask(one), Listener()))) for one in questions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {"Paris" in (one.text if one else "") for one in answers} == {True, False}


def test_a_prompt_longer_than_the_model_holds_is_the_callers_fault(model: LlamaChat) -> None:
    with pytest.raises(ModelError, match=r"The prompt has \d{4,} tokens .* holds 8192 in all") as caught:
        model.answer(ask("hello world " * 9000), Listener())
    assert caught.value.fault is ModelErrorKind.VALIDATION
    assert not caught.value.retryable


def test_a_fault_of_the_listener_is_raised_and_ends_the_answer(model: LlamaChat) -> None:
    class Broken(Listener):
        def progress(self, step: int, total: int, *, text: str | None = None) -> None:
            raise KeyError("broken")

    with pytest.raises(KeyError):
        model.answer(ask("hello"), Broken())
    assert answered(model, ask("What is the capital of France?")).text


def test_nobody_else_can_ask_it_and_its_memory_goes_back() -> None:
    """In a process of its own: what a model holds cannot be told from what others hold."""
    program = """
import os
import psutil
from modelkit.device import Device, release
from modelkit.family import Source
from modelkit.language import LanguageFamily
from tests.unit.modelkit.test_language import Listener, ask
process = psutil.Process()
family, device = LanguageFamily(), Device("cpu", 1)
source = Source(family.packaged[0])
family.load(source, device).close()
release()
before = process.memory_info().rss
model = family.load(source, device)
for connection in process.net_connections(kind="all"):
    assert not connection.status == "LISTEN", connection
    if connection.family.name == "AF_UNIX" and connection.laddr:
        assert not os.path.exists(connection.laddr), connection
model.answer(ask("What is the capital of France?"), Listener())
held = process.memory_info().rss - before
says = sum(model.holdings().values())
assert says == family.size(source, device)
assert says / 1.25 < held < says * 1.25, (held, says)
model.close()
del model
release()
left = process.memory_info().rss - before
assert left < held / 10, (left, held)
print("ok")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "ok"), done.stderr


def test_the_header_of_the_packaged_model() -> None:
    header = read_header(_packaged())
    assert (header.architecture, header.context, header.vocabulary) == ("llama", 8192, 49152)
    assert header.context_bytes_per_token == 30 * 3 * (64 + 64) * 2


def test_a_gguf_file_is_served_by_its_path_under_its_own_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    file.symlink_to(_packaged())
    card = read_card(file)
    assert card == ModelCard(name="mine", architecture=GGUF)
    family = LanguageFamily()
    assert family.matches(card)
    assert family.size(Source(card, file), DEVICE) == family.size(PACKAGED, DEVICE)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError, match="must hold one GGUF file"):
        family.size(Source(card, tmp_path / "folder"), DEVICE)


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"PK\3\4" + bytes(60), b"GGUF" + struct.pack("<IQQ", 3, 0, 1), b"GGUF" + bytes(60)]
)
def test_a_file_that_is_no_gguf_is_told_without_its_path(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError, match="not a readable GGUF") as caught:
        LanguageFamily().load(Source(read_card(file), file), DEVICE)
    assert caught.value.fault is ModelErrorKind.RESOURCE


def test_damaged_weights_of_the_package_are_refused(tmp_path: Path) -> None:
    _check(_packaged())
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="damaged"):
        _check(file)


def test_the_first_words_come_before_the_last(model: LlamaChat) -> None:
    moments: list[float] = []

    class Timed(Listener):
        def progress(self, step: int, total: int, *, text: str | None = None) -> None:
            if step:
                moments.append(time.monotonic())

    model.answer(ask("Tell me a story.", max_tokens=30), Timed())
    assert len(set(moments)) >= 20
