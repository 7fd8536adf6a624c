import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel

from modelkit.flux_layers import LayerNames, modules_of

SHIPPED = Path(__file__).parents[3] / "models/garments/weights"
SMALL: dict[str, Any] = {
    "num_layers": 2,
    "num_single_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 16,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 8,
    "guidance_embeds": True,
}


def config(part: str) -> dict[str, Any]:
    return dict(json.loads((SHIPPED / part / "config.json").read_text()))


@pytest.mark.parametrize("of", [SMALL, config("transformer")], ids=["guided", "shipped"])
def test_the_layers_of_a_configuration_are_those_of_the_model(of: dict[str, Any]) -> None:
    arguments = {name: value for name, value in of.items() if not name.startswith("_")}
    with torch.device("meta"):
        model = FluxTransformer2DModel(**{"axes_dims_rope": (4, 6, 6), **arguments})
    linear = {
        f"transformer.{path}": (module.in_features, module.out_features)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert modules_of(of) == linear


def test_the_layers_of_the_text_encoder_are_those_of_the_model() -> None:
    of = config("text_encoder")
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**of))
    linear = {
        path.removeprefix("text_model."): (module.in_features, module.out_features)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    made = modules_of(config("transformer"), of)
    told = {
        path.removeprefix("text_encoder.text_model."): size
        for path, size in made.items()
        if path.startswith("text_encoder.")
    }
    assert told == linear


def test_a_configuration_of_another_kind_of_model_is_not_taken_for_one() -> None:
    with pytest.raises(KeyError):
        modules_of({"num_attention_heads": 2, "attention_head_dim": 16})


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("lora_unet_double_blocks_1_txt_attn_qkv", ["add_q_proj", "add_k_proj", "add_v_proj"]),
        ("diffusion_model.single_blocks.0.linear1", ["to_q", "to_k", "to_v", "proj_mlp"]),
        ("double_blocks.0.processor.proj_lora2", ["to_add_out"]),
        ("base_model.model.transformer_blocks.0.attn.to_q", ["to_q"]),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", ["fc1"]),
        ("lora_transformer_norm_out_linear", ["linear"]),
    ],
)
def test_a_layer_is_found_by_each_tools_name(name: str, targets: list[str]) -> None:
    clip = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    found = LayerNames(modules_of(SMALL, clip)).find(name)
    assert found is not None
    assert [target.rpartition(".")[2] for target in found.targets] == targets


def test_the_last_norms_halves_are_swapped_in_the_original_alone() -> None:
    names = LayerNames(modules_of(SMALL))
    original = names.find("lora_unet_final_layer_adaLN_modulation_1")
    ours = names.find("transformer.norm_out.linear")
    assert original is not None
    assert ours is not None
    assert original.targets == ours.targets
    assert (original.swapped, ours.swapped) == (True, False)


def test_a_block_that_the_model_lacks_has_no_name() -> None:
    assert LayerNames(modules_of(SMALL)).find("lora_unet_double_blocks_2_img_attn_qkv") is None
