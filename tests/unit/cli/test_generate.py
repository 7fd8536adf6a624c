"""LoRAs of the command line find their slots."""

import pytest

from atelier_cli.commands.generate import lora_fields
from atelier_cli.errors import CliError


def test_library_folder_chooses_the_slot() -> None:
    assert lora_fields(["identities/ada.safetensors:0.8", "product/bag.safetensors"]) == {
        "subject_model_path": "identities/ada.safetensors",
        "subject_lora_weight": 0.8,
        "product_model_path": "product/bag.safetensors",
        "product_lora_weight": 1.0,
    }


def test_second_product_has_a_slot_and_a_third_has_none() -> None:
    assert lora_fields(["product/a", "product/b:2"])["product2_lora_weight"] == 2.0
    with pytest.raises(CliError, match="no free slot"):
        lora_fields(["product/a", "product/b", "product/c"])


def test_path_of_no_known_folder_takes_the_next_free_slot() -> None:
    assert set(lora_fields(["a.safetensors", "b.safetensors"])) == {
        "style_model_path",
        "style_lora_weight",
        "product_model_path",
        "product_lora_weight",
    }


def test_weight_that_is_no_number_is_refused() -> None:
    with pytest.raises(CliError, match="not a weight"):
        lora_fields(["a.safetensors:heavy"])
