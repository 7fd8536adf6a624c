"""LoRAs as training tools write them, on a model: each changes the picture, and as its numbers say."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file

from modelkit.requests import AdapterFile
from modelkit.residency import Models
from tests.integration.modelkit.test_flux import NATIVE, make, request
from tests.loras.layouts import LAYOUTS, write

DOUBLE, SINGLE = "transformer.transformer_blocks.0", "transformer.single_transformer_blocks.0"
# Layers of the original model, and what they are here.
PLACES = {
    "double_blocks_0_img_attn_qkv": [f"{DOUBLE}.attn.to_{part}" for part in "qkv"],
    "double_blocks_0_txt_mlp_0": [f"{DOUBLE}.ff_context.net.0.proj"],
    "single_blocks_0_linear1": [*(f"{SINGLE}.attn.to_{part}" for part in "qkv"), f"{SINGLE}.proj_mlp"],
    "single_blocks_0_linear2": [f"{SINGLE}.proj_out"],
}


@pytest.fixture
def config(tiny: Path) -> dict[str, Any]:
    return dict(json.loads((tiny / "transformer/config.json").read_text()))


def picture(models: Models, *adapters: AdapterFile) -> Any:
    (made,) = make(models, replace(NATIVE, adapters=adapters), [request()])
    return made


def test_a_file_of_each_tool_changes_the_picture(models: Models, config: dict[str, Any], tmp_path: Path) -> None:
    base = picture(models)
    for layout, shapes in LAYOUTS.items():
        path = tmp_path / f"{layout}.safetensors"
        path.write_bytes(write(shapes(config), scale=2.0))
        assert np.abs(picture(models, AdapterFile(path, 1.0)) - base).mean() > 1, layout
    assert (picture(models) == base).all()


def test_a_layer_of_the_original_model_does_what_its_parts_do_here(
    models: Models, config: dict[str, Any], tmp_path: Path
) -> None:
    kohya, ours = tmp_path / "kohya.safetensors", tmp_path / "ours.safetensors"
    shapes = {
        name: shape
        for name, shape in LAYOUTS["kohya"](config).items()
        if name.split(".")[0].removeprefix("lora_unet_") in PLACES
    }
    kohya.write_bytes(write(shapes, scale=2.0, alpha=2.0))
    held, parts = load(kohya.read_bytes()), dict[str, torch.Tensor]()
    for layer, targets in PLACES.items():
        up = held[f"lora_unet_{layer}.lora_up.weight"]
        # The three of the attention come first, and what is left is the last one's.
        begins = [32 * index for index in range(len(targets))]
        for target, begin, end in zip(targets, begins, [*begins[1:], len(up)], strict=True):
            parts[f"{target}.lora_A.weight"] = held[f"lora_unet_{layer}.lora_down.weight"].clone()
            parts[f"{target}.lora_B.weight"] = up[begin:end].clone()
    save_file(parts, ours)
    # A scale of 2 at rank 4 is half the weight.
    assert np.abs(picture(models, AdapterFile(kohya, 1.0)) - picture(models, AdapterFile(ours, 0.5))).max() <= 2


def test_the_last_layers_of_the_original_model_are_scaled_and_swapped(models: Models, tmp_path: Path) -> None:
    kohya, ours = tmp_path / "kohya.safetensors", tmp_path / "ours.safetensors"
    generator = torch.Generator().manual_seed(1)
    down, up = torch.randn(4, 32, generator=generator), torch.randn(64, 4, generator=generator)
    layer = "lora_unet_final_layer_adaLN_modulation_1"
    alpha = {f"{layer}.alpha": torch.tensor(2.0)}
    save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up, **alpha}, kohya)
    target = "transformer.norm_out.linear"
    swapped = torch.cat((up[32:], up[:32]))
    save_file({f"{target}.lora_A.weight": down, f"{target}.lora_B.weight": swapped}, ours)
    base = picture(models)
    made = picture(models, AdapterFile(kohya, 1.0))
    assert (made != base).any()
    assert np.abs(made - picture(models, AdapterFile(ours, 0.5))).max() <= 2


@pytest.mark.parametrize(
    "name", ["lora_te1_text_model_encoder_layers_0_mlp_fc1", "text_encoder.encoder.layers.0.mlp.fc1"]
)
def test_layers_of_the_text_encoder_count(models: Models, tmp_path: Path, name: str) -> None:
    path = tmp_path / "text.safetensors"
    generator = torch.Generator().manual_seed(1)
    halves = ("lora_down", "lora_up") if name.startswith("lora_te") else ("lora_A", "lora_B")
    down, up = (torch.randn(size, generator=generator) * 9 for size in ((4, 16), (32, 4)))
    save_file({f"{name}.{halves[0]}.weight": down, f"{name}.{halves[1]}.weight": up}, path)
    base = picture(models)
    assert (picture(models, AdapterFile(path, 1.0)) != base).any()
    assert (picture(models) == base).all()


def test_layers_that_the_model_lacks_are_left_out_and_told(
    models: Models, config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, more = tmp_path / "plain.safetensors", tmp_path / "more.safetensors"
    shapes = LAYOUTS["diffusers"](config)
    plain.write_bytes(write(shapes, scale=2.0))
    beyond = {f"transformer.transformer_blocks.7.attn.to_q.lora_{half}.weight": (4, 4) for half in "AB"}
    more.write_bytes(write({**shapes, **beyond}, scale=2.0))
    assert (picture(models, AdapterFile(plain, 1.0)) == picture(models, AdapterFile(more, 1.0))).all()
    # Where logs go is set by whichever service a test of the same run has started.
    assert "lora_layers_unmatched" in "".join(capsys.readouterr())
