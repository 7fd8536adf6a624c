import pytest

from meshkit.errors import MeshError
from services.training.trainer.dataset.captions import MAX_CHARS, caption_for, require_prompt, with_trigger


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("", "ohwx"),
        ("  ", "ohwx"),
        ("[trigger]", "ohwx"),
        ("a photo of [trigger] dress", "a photo of ohwx dress"),
        ("[trigger] and [trigger]", "ohwx and ohwx"),
        ("a red dress", "ohwx, a red dress"),
        ("a red OHWX dress", "a red OHWX dress"),
        ("the ohwxish dress", "ohwx, the ohwxish dress"),
        ("two\n lines", "ohwx, two lines"),
    ],
)
def test_a_caption_has_the_trigger_word(text: str, caption: str) -> None:
    assert with_trigger(text, "ohwx") == caption


def test_a_trigger_word_is_taken_as_it_is_written() -> None:
    assert with_trigger("a c++ dress", "c++") == "a c++ dress"
    assert with_trigger("a c dress", "c++") == "c++, a c dress"


def test_each_strategy_says_what_it_is_for() -> None:
    assert caption_for("trigger_only", "w", "a prompt", "what is seen") == "w"
    assert caption_for("prompt", "w", "a [trigger] prompt", "what is seen") == "a w prompt"
    assert caption_for("auto", "w", "a prompt", "what is seen") == "w, what is seen"
    assert len(caption_for("prompt", "w", "x" * 5000, "")) == MAX_CHARS


def test_the_strategy_prompt_needs_one() -> None:
    require_prompt("trigger_only", "")
    require_prompt("prompt", "a dress")
    with pytest.raises(MeshError) as caught:
        require_prompt("prompt", " ")
    assert caught.value.violations[0].path == "preprocessing_captioning_prompt"
    assert caught.value.violations[0].type == "missing"
