"""A transformers language model of a folder: a tiny one, made here. It talks nonsense, and does so repeatably."""

from pathlib import Path
from typing import Any

import pytest

from meshkit.worker.handlers import Need
from modelkit.card import CAUSAL, read_card
from modelkit.causal import CausalChat
from modelkit.chat import Answer, ChatRequest
from modelkit.device import Device
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.family import Source
from modelkit.language import LanguageFamily
from modelkit.residency import Models
from tests.unit.modelkit.test_language import Listener, ask

DEVICE = Device("cpu", 1)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch  # noqa: PLC0415 -- as in the fixtures of the other models
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415 -- as above
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: PLC0415 -- as above

    made = tmp_path_factory.mktemp("language") / "tiny-chat"
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a red dress on a chair", "a blue coat in the rain"] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>")
    fast.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(made)
    fast.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> CausalChat:
    loaded = LanguageFamily().load(Source(read_card(folder), folder), DEVICE)
    assert isinstance(loaded, CausalChat)
    return loaded


def answered(model: CausalChat, request: ChatRequest, listener: Listener | None = None) -> Answer:
    answer = model.answer(request, listener or Listener())
    assert answer is not None
    return answer


def drawn(seed: int, **members: Any) -> ChatRequest:
    return ask("a red dress", temperature=1.0, seed=seed, **members)


def test_the_folder_says_by_itself_what_it_is(folder: Path) -> None:
    card = read_card(folder)
    assert (card.name, card.architecture) == ("tiny-chat", CAUSAL)
    source = Source(card, folder)
    held = sum(LanguageFamily().load(source, DEVICE).holdings().values())
    assert LanguageFamily().size(source, DEVICE) == pytest.approx(held, rel=0.01)


def test_a_seed_repeats_an_answer_and_another_seed_does_not(model: CausalChat) -> None:
    first = answered(model, drawn(1, max_tokens=12))
    assert answered(model, drawn(2, max_tokens=12)).text != first.text
    assert answered(model, drawn(1, max_tokens=12)) == first


def test_the_answer_is_what_the_library_makes_of_the_same_prompt(model: CausalChat) -> None:
    answer = answered(model, ask("a red dress", max_tokens=10))
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "a red dress"},
    ]
    encoded = model._tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    made = model._model.generate(**encoded, max_new_tokens=10, do_sample=False)[0, encoded["input_ids"].shape[1] :]
    assert answer.input_tokens == encoded["input_ids"].shape[1]
    assert answer.output_tokens == len(made) == 10
    assert answer.text == model._tokenizer.decode(made, skip_special_tokens=True).rstrip("\ufffd")


def test_a_prompt_that_is_read_in_parts_is_answered_alike(model: CausalChat, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = answered(model, ask("a red dress on a chair in the rain", max_tokens=10))
    monkeypatch.setattr("modelkit.causal._READ_AT_ONCE", 7)
    assert answered(model, ask("a red dress on a chair in the rain", max_tokens=10)) == whole


def test_top_p_of_nearly_nothing_takes_the_likeliest_token(model: CausalChat) -> None:
    likeliest = answered(model, ask("a red dress", max_tokens=10)).text
    assert answered(model, drawn(5, max_tokens=10, top_p=1e-6)).text == likeliest


def test_an_answer_ends_at_max_tokens_or_where_the_context_is_full(model: CausalChat) -> None:
    listener = Listener()
    assert answered(model, ask("a red dress", max_tokens=3), listener).cut == "max_tokens"
    assert listener.steps[-1] == (3, 3)
    long = answered(model, ask("a red dress", max_tokens=1000))
    assert (long.cut, long.input_tokens + long.output_tokens) == ("context", 256)


def test_an_answer_ends_at_the_end_token_which_is_no_part_of_it(
    model: CausalChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answered(model, ask("a red dress", max_tokens=6))
    written: list[int] = []
    decode = model._decoded

    def noted(tokens: list[int]) -> str:
        written.extend(tokens[len(written) :])
        return decode(tokens)

    monkeypatch.setattr(model, "_decoded", noted)
    answered(model, ask("a red dress", max_tokens=6))
    monkeypatch.setattr(model, "_decoded", decode)
    end = written[4]
    monkeypatch.setattr(model, "_ends", frozenset({end}))
    ended = answered(model, ask("a red dress", max_tokens=6))
    assert (ended.cut, ended.output_tokens) == (None, written.index(end) + 1)
    assert ended.text == decode(written[: written.index(end)])
    assert whole.text.startswith(ended.text)


def test_a_cancel_ends_the_answer_between_two_tokens(model: CausalChat) -> None:
    listener = Listener(stop_at=3)
    assert model.answer(ask("a red dress", max_tokens=50), listener) is None
    assert listener.steps[-1][0] == 3


def test_a_prompt_that_is_too_long_is_the_callers_fault(model: CausalChat) -> None:
    with pytest.raises(ModelError, match="the model holds 256 in all") as caught:
        model.answer(ask("a red dress " * 100), Listener())
    assert caught.value.fault is ModelErrorKind.VALIDATION


def test_a_folder_without_weights_or_template_is_the_operators_fault(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    source = Source(read_card(tmp_path), tmp_path)
    assert source.card.architecture == CAUSAL
    with pytest.raises(ModelError, match="holds no safetensors") as caught:
        LanguageFamily().size(source, DEVICE)
    assert caught.value.fault is ModelErrorKind.RESOURCE
    with pytest.raises(ModelError, match="could not be loaded"):
        LanguageFamily().load(source, DEVICE)


def test_a_family_default_stands_before_the_packaged_model_which_its_name_still_finds(folder: Path) -> None:
    models = Models("nowhere", "cpu", 1 << 30, threads=1, families=["language"], defaults={"language": str(folder)})
    for model, name in ((None, "tiny-chat"), ("tiny-chat", "tiny-chat"), ("smollm2-135m-instruct",) * 2):
        with models.lend([Need("model", "language", model)]):
            assert [one.name for one in models.resident() if one.pins] == [name]
    with pytest.raises(ModelError, match="not served here"), models.lend([Need("model", "language", "other")]):
        pass
    models.free()
    assert models.resident() == []


def test_what_has_come_up_becomes_less_likely(model: CausalChat) -> None:
    plain = answered(model, ask("a red dress", max_tokens=40))
    varied = answered(model, ask("a red dress", max_tokens=40, frequency_penalty=2.0))
    assert plain.text != varied.text
    assert len(set(varied.text)) > len(set(plain.text))
    assert answered(model, ask("a red dress", max_tokens=40, frequency_penalty=0.0)) == plain
