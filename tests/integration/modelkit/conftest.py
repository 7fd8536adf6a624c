"""A FLUX pipeline of a few thousand random weights, its tokenizers included, and LoRAs that fit it."""

import json
import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from meshkit.worker.handlers import Need
from modelkit.flux import FluxModel
from modelkit.residency import Models

CARD = {
    "name": "tiny",
    "native_size": 64,
    "max_size": 64,
    "size_multiple": 16,
    "max_sequence_length": 16,
    "steps": {"default": 4, "min": 1, "max": 20},
    "guidance": {"embedded": False, "scale_default": 1.0, "true_cfg_scale": 2.0, "negative_prompt": ""},
}


def build(folder: Path, *, seed: int = 0, name: str = "tiny") -> Path:
    torch.manual_seed(seed)
    characters = sorted(ByteLevel.alphabet())
    pieces = [*characters, *(character + "</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
    clip = CLIPTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], model_max_length=77)
    letters = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    letters += [(letter, -2.0) for letter in string.ascii_lowercase + string.digits]
    t5 = T5TokenizerFast(vocab=letters, extra_ids=0, model_max_length=512)
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=AutoencoderKL(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
            shift_factor=0.1,
            scaling_factor=0.4,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(pieces),
                hidden_size=16,
                intermediate_size=32,
                projection_dim=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                bos_token_id=len(pieces) - 2,
                eos_token_id=len(pieces) - 1,
                pad_token_id=len(pieces) - 1,
            )
        ),
        tokenizer=clip,
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=len(letters), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ),
        tokenizer_2=t5,
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 6, 6),
            guidance_embeds=False,
        ),
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    (folder / "atelier.json").write_text(json.dumps({**CARD, "name": name}))
    return folder


@contextmanager
def lend_flux(models: Models, name: str | None = None) -> Iterator[FluxModel]:
    with models.lend([Need("model", "flux", name)]) as lent:
        yield lent["model"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def shared_models(tiny: Path) -> Models:
    return Models(str(tiny), "cpu", 1 << 30, threads=1)


@pytest.fixture
def models(shared_models: Models) -> Iterator[Models]:
    yield shared_models
    shared_models.free()


@pytest.fixture
def make_lora(tmp_path: Path) -> Callable[..., Path]:
    """Writes a LoRA of random weights for the first block's query layer."""

    def make(name: str = "a", seed: int = 1, *, width: int = 32, scale: float = 3.0, layer: str = "attn.to_q") -> Path:
        generator = torch.Generator().manual_seed(seed)
        prefix = f"transformer.transformer_blocks.0.{layer}"
        tensors = {
            f"{prefix}.lora_A.weight": torch.randn(4, width, generator=generator) * scale,
            f"{prefix}.lora_B.weight": torch.randn(width, 4, generator=generator) * scale,
        }
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path)
        return path

    return make
