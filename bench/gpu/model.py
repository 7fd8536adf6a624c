"""A model of FLUX.1-dev's size with random weights, as a diffusers folder, and two LoRAs for it.

The transformer and the VAE have the public configuration of FLUX.1-dev. The text encoders are small ones of the right
widths: they run once a picture and would be 10 GB more to write. Nothing is downloaded; tokenizers and scheduler are
the shipped model's and diffusers' own.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil

from bench.gpu.setting import LORAS, MODEL_NAME, SHIPPED, Figure, PartError, Setting

_GIB = 1 << 30
# The worker gives models four fifths of what a device has free, and its child four fifths of the machine's memory.
_SHARE = 0.8
_SPARE_BYTES = 2 * _GIB
_LORA_RANK = 16
_LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Configurations of the model's networks, as diffusers and transformers take them.

    Attributes:
        transformer: Of `FluxTransformer2DModel`.
        vae: Of `AutoencoderKL`.
        clip: Of `CLIPTextConfig`, less what the tokenizer decides.
        t5: Of `T5Config`, less what the tokenizer decides.
        card: The model's card.
    """

    transformer: dict[str, Any]
    vae: dict[str, Any]
    clip: dict[str, Any]
    t5: dict[str, Any]
    card: dict[str, Any]


def _vae(widths: tuple[int, ...], layers: int, groups: int, sample: int) -> dict[str, Any]:
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 16,
        "block_out_channels": widths,
        "layers_per_block": layers,
        "norm_num_groups": groups,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "shift_factor": 0.1159,
        "scaling_factor": 0.3611,
        "sample_size": sample,
    }


SIZES = {
    # https://huggingface.co/black-forest-labs/FLUX.1-dev: transformer/config.json, vae/config.json.
    "full": Sizes(
        transformer={
            "patch_size": 1,
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": True,
            "axes_dims_rope": (16, 56, 56),
        },
        vae=_vae((128, 256, 512, 512), layers=2, groups=32, sample=1024),
        clip={"hidden_size": 768, "intermediate_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12},
        t5={"d_model": 4096, "d_kv": 64, "d_ff": 1024, "num_layers": 1, "num_heads": 16},
        card={"native_size": 1024, "min_size": 256, "max_size": 2048, "max_sequence_length": 512},
    ),
    "tiny": Sizes(
        transformer={
            "patch_size": 1,
            "in_channels": 64,
            "num_layers": 1,
            "num_single_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 32,
            "guidance_embeds": True,
            "axes_dims_rope": (4, 6, 6),
        },
        vae=_vae((8, 16, 16, 16), layers=1, groups=8, sample=64),
        clip={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4},
        t5={"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4},
        card={"native_size": 64, "min_size": 64, "max_size": 64, "max_sequence_length": 32},
    ),
}


def measure(setting: Setting) -> Iterator[Figure]:
    """Build the model on the device and write it into the run's folder.

    Raises:
        PartError: The device, the machine's memory or the disk is too small for it.
    """
    import torch  # noqa: PLC0415 -- only the part's own process imports it

    from modelkit.device import Device  # noqa: PLC0415 -- heavy; only in this part's process

    sizes = SIZES[setting.scale.name]
    dtype = Device(setting.device).dtype
    count = _parameters(sizes)
    _check_room(setting, count * dtype.itemsize)
    begun = time.perf_counter()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(setting.device), torch.no_grad():
        pipeline = _pipeline(sizes)
    built = time.perf_counter()
    yield Figure("transformer and VAE", count / 1e9, "billion parameters", str(dtype).removeprefix("torch."))
    pipeline.save_pretrained(setting.model)
    card = {"name": MODEL_NAME, "architecture": "flux", "guidance": {"embedded": True}, **sizes.card}
    (setting.model / "atelier.json").write_text(json.dumps(card))
    for name in LORAS:
        _write_lora(pipeline.transformer, setting, name)
    yield Figure("built", built - begun, "s")
    size = sum(file.stat().st_size for file in setting.model.rglob("*") if file.is_file())
    yield Figure("written", time.perf_counter() - built, "s", f"{size / 1e9:.1f} GB")


def check_room(*, needed: int, device_free: int | None, memory: int, disk_free: int, where: str) -> None:
    """Refuse to build a model that would not fit.

    Args:
        needed: Bytes of its weights.
        device_free: Free bytes of the GPU; None on a CPU.
        memory: Bytes of the machine's memory.
        disk_free: Free bytes where it would be written.
        where: That place.

    Raises:
        PartError: Something is too small; the text says what and by how much.
    """
    on_device = int(needed / _SHARE)
    if device_free is not None and device_free < on_device:
        message = f"The GPU has {_gib(device_free)} free; the model needs {_gib(on_device)}."
        raise PartError(message)
    in_memory = int((needed + _SPARE_BYTES) / _SHARE)
    if memory < in_memory:
        message = f"This machine has {_gib(memory)} of memory; the model needs {_gib(in_memory)}."
        raise PartError(message)
    on_disk = needed + _SPARE_BYTES
    if disk_free < on_disk:
        message = f"{where} has {_gib(disk_free)} free; the model needs {_gib(on_disk)}. Name another by --folder."
        raise PartError(message)


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"


def _check_room(setting: Setting, needed: int) -> None:
    import torch  # noqa: PLC0415 -- heavy; only in this part's process

    check_room(
        needed=needed,
        device_free=None if setting.device == "cpu" else torch.cuda.mem_get_info(setting.device)[0],
        memory=psutil.virtual_memory().total,
        disk_free=shutil.disk_usage(setting.folder).free,
        where=str(setting.folder),
    )


def _parameters(sizes: Sizes) -> int:
    """Count the parameters of the two large networks, without making them."""
    import torch  # noqa: PLC0415 -- heavy; only in this part's process
    from diffusers import AutoencoderKL, FluxTransformer2DModel  # noqa: PLC0415 -- heavy; only in this part's process

    with torch.device("meta"):
        networks = (FluxTransformer2DModel(**sizes.transformer), AutoencoderKL(**sizes.vae))
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def _pipeline(sizes: Sizes) -> Any:
    from diffusers import (  # noqa: PLC0415 -- heavy; only in this part's process
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        FluxTransformer2DModel,
    )
    from transformers import (  # noqa: PLC0415 -- heavy; only in this part's process
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTokenizer,
        T5Config,
        T5EncoderModel,
        T5TokenizerFast,
    )

    short = CLIPTokenizer.from_pretrained(SHIPPED / "tokenizer", local_files_only=True)
    long = T5TokenizerFast.from_pretrained(SHIPPED / "tokenizer_2", local_files_only=True)
    clip = CLIPTextConfig(
        vocab_size=len(short),
        max_position_embeddings=short.model_max_length,
        bos_token_id=short.bos_token_id,
        eos_token_id=short.eos_token_id,
        pad_token_id=short.pad_token_id,
        **sizes.clip,
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        vae=AutoencoderKL(**sizes.vae),
        text_encoder=CLIPTextModel(clip),
        tokenizer=short,
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=len(long), **sizes.t5)),
        tokenizer_2=long,
        transformer=FluxTransformer2DModel(**sizes.transformer),
    )


def _write_lora(transformer: Any, setting: Setting, name: str) -> None:
    """Write a LoRA of random weights for every attention of the transformer."""
    import torch  # noqa: PLC0415 -- heavy; only in this part's process
    from safetensors.torch import save_file  # noqa: PLC0415 -- heavy; only in this part's process

    tensors = {}
    for path, layer in transformer.named_modules():
        if isinstance(layer, torch.nn.Linear) and path.endswith(_LORA_TARGETS):
            down = torch.randn(_LORA_RANK, layer.in_features) / layer.in_features**0.5
            tensors[f"transformer.{path}.lora_A.weight"] = down
            tensors[f"transformer.{path}.lora_B.weight"] = torch.randn(layer.out_features, _LORA_RANK) / 100
    save_file(tensors, setting.lora(name))
