import json
from pathlib import Path
from typing import Any

import pytest

from modelkit.card import read_card
from modelkit.errors import ModelError, ModelErrorKind

GARMENTS = {
    "name": "garments",
    "architecture": "flux",
    "native_size": 64,
    "max_size": 64,
    "size_multiple": 16,
    "max_sequence_length": 32,
    "steps": {"default": 12, "min": 1, "max": 50},
    "guidance": {"scale_default": 1.0, "embedded": False, "true_cfg_scale": 2.0, "negative_prompt": ""},
    "lora": {"target_modules": ["to_q", "to_k"]},
    "dtype": "float32",
    "a member of a later time": 1,
}


def write(folder: Path, card: Any) -> Path:
    (folder / "atelier.json").write_text(card if isinstance(card, str) else json.dumps(card))
    return folder


def test_a_card_is_read_as_written(tmp_path: Path) -> None:
    card = read_card(write(tmp_path, GARMENTS))
    assert (card.name, card.native_size, card.max_size, card.max_sequence_length) == ("garments", 64, 64, 32)
    assert (card.steps.default, card.guidance.embedded, card.guidance.true_cfg_scale) == (12, False, 2.0)
    assert card.lora.target_modules == ("to_q", "to_k")
    assert card.min_size == 64


def test_a_folder_without_a_card_is_taken_for_flux_dev(tmp_path: Path) -> None:
    card = read_card(tmp_path)
    assert (card.native_size, card.max_sequence_length, card.steps.default) == (1024, 512, 28)
    assert (card.guidance.embedded, card.guidance.scale_default, card.guidance.true_cfg_scale) == (True, 3.5, 1.0)


def test_a_folder_whose_transformer_takes_no_guidance_is_taken_for_flux_schnell(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"guidance_embeds": false}')
    card = read_card(tmp_path)
    assert (card.max_sequence_length, card.steps.default, card.guidance.embedded) == (256, 4, False)


def test_a_snapshot_of_the_hubs_cache_has_the_hubs_name(tmp_path: Path) -> None:
    folder = tmp_path / "models--black-forest-labs--FLUX.1-dev" / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    assert read_card(folder).name == "black-forest-labs/FLUX.1-dev"


@pytest.mark.parametrize(
    ("card", "sentence"),
    [
        ("{", "not readable JSON"),
        ("[]", "must hold an object"),
        ({**GARMENTS, "steps": {"default": 60, "min": 1, "max": 50}}, "steps: .*min <= default <= max"),
        ({**GARMENTS, "native_size": 0}, "native_size"),
        ({**GARMENTS, "max_size": 32}, "min_size <= native_size <= max_size"),
        ({**GARMENTS, "size_multiple": 48}, "multiples of size_multiple"),
        ({**GARMENTS, "max_sequence_length": 513}, "max_sequence_length"),
        ({**GARMENTS, "architecture": ""}, "architecture"),
        ({**GARMENTS, "architecture": 7}, "architecture"),
    ],
)
def test_a_faulty_card_is_a_sentence(tmp_path: Path, card: Any, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence) as caught:
        read_card(write(tmp_path, card))
    assert caught.value.fault is ModelErrorKind.RESOURCE
    assert str(tmp_path) not in caught.value.message
