"""LoRA files with the key names of five training tools, for a FLUX of any size, as bytes of safetensors or tensors.

The names are those of the tools' own code: sd-scripts `networks/lora_flux.py`, ai-toolkit (diffusers and kohya), x-flux
`src/flux/modules/layers.py`, fal's FLUX trainer, OneTrainer `FluxLoRASetup`.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

Shape = tuple[int, ...]
_RANK = 4


def config_modules(config: Mapping[str, Any]) -> int:
    """Return a FLUX's width."""
    return int(config["num_attention_heads"] * config["attention_head_dim"])


def _pair(layer: str, inputs: int, outputs: int, down: str, up: str, alpha: bool, rank: int) -> dict[str, Shape]:
    made: dict[str, Shape] = {f"{layer}.{down}.weight": (rank, inputs), f"{layer}.{up}.weight": (outputs, rank)}
    return made | ({f"{layer}.alpha": ()} if alpha else {})


def _blocks(config: Mapping[str, Any]) -> Iterator[tuple[int, bool]]:
    yield from ((index, True) for index in range(config["num_layers"]))
    yield from ((index, False) for index in range(config["num_single_layers"]))


def diffusers(config: Mapping[str, Any], rank: int = _RANK) -> dict[str, Shape]:
    """Name layers as diffusers' scripts and ai-toolkit do."""
    width, made = config_modules(config), dict[str, Shape]()
    for index, double in _blocks(config):
        block = f"transformer.{'transformer_blocks' if double else 'single_transformer_blocks'}.{index}"
        layers = {f"attn.to_{part}": (width, width) for part in "qkv"}
        layers |= {"attn.to_out.0": (width, width), "ff.net.2": (4 * width, width)} if double else {}
        layers |= {} if double else {"proj_mlp": (width, 4 * width), "proj_out": (5 * width, width)}
        for name, (inputs, outputs) in layers.items():
            made |= _pair(f"{block}.{name}", inputs, outputs, "lora_A", "lora_B", alpha=False, rank=rank)
    return made


def _original(config: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    width = config_modules(config)
    for index, double in _blocks(config):
        if double:
            for stream in ("img", "txt"):
                yield f"double_blocks.{index}.{stream}_attn.qkv", width, 3 * width
                yield f"double_blocks.{index}.{stream}_attn.proj", width, width
                yield f"double_blocks.{index}.{stream}_mlp.0", width, 4 * width
                yield f"double_blocks.{index}.{stream}_mlp.2", 4 * width, width
        else:
            yield f"single_blocks.{index}.linear1", width, 7 * width
            yield f"single_blocks.{index}.linear2", 5 * width, width


def kohya(config: Mapping[str, Any], rank: int = _RANK) -> dict[str, Shape]:
    """Name layers as sd-scripts does, and ai-toolkit for it."""
    made: dict[str, Shape] = {}
    for name, inputs, outputs in _original(config):
        layer = "lora_unet_" + name.replace(".", "_")
        made |= _pair(layer, inputs, outputs, "lora_down", "lora_up", alpha=True, rank=rank)
    return made


def xlabs(config: Mapping[str, Any], rank: int = _RANK) -> dict[str, Shape]:
    """Name layers as x-flux does."""
    width, made = config_modules(config), dict[str, Shape]()
    for index, double in _blocks(config):
        block = f"{'double_blocks' if double else 'single_blocks'}.{index}.processor"
        for stream in ("1", "2") if double else ("",):
            inner = width if double else 5 * width
            made |= _pair(f"{block}.qkv_lora{stream}", width, 3 * width, "down", "up", alpha=False, rank=rank)
            made |= _pair(f"{block}.proj_lora{stream}", inner, width, "down", "up", alpha=False, rank=rank)
    return made


def fal(config: Mapping[str, Any], rank: int = _RANK) -> dict[str, Shape]:
    """Name layers as fal's trainer does: peft around the original model."""
    made: dict[str, Shape] = {}
    for name, inputs, outputs in _original(config):
        made |= _pair(f"base_model.model.{name}", inputs, outputs, "lora_A", "lora_B", alpha=False, rank=rank)
    return made


def bfl(config: Mapping[str, Any], rank: int = _RANK) -> dict[str, Shape]:
    """Name layers as the original model does, with ComfyUI's prefix."""
    made: dict[str, Shape] = {}
    for name, inputs, outputs in _original(config):
        made |= _pair(f"diffusion_model.{name}", inputs, outputs, "lora_A", "lora_B", alpha=False, rank=rank)
    return made


def onetrainer(config: Mapping[str, Any], rank: int = _RANK) -> dict[str, Shape]:
    """Name layers as OneTrainer does."""
    width, made = config_modules(config), dict[str, Shape]()
    for index, double in _blocks(config):
        block = f"lora_transformer_{'transformer_blocks' if double else 'single_transformer_blocks'}_{index}"
        layers = {f"attn_to_{part}": (width, width) for part in "qkv"}
        layers |= {"attn_to_out_0": (width, width), "ff_net_0_proj": (width, 4 * width)} if double else {}
        for name, (inputs, outputs) in layers.items():
            made |= _pair(f"{block}_{name}", inputs, outputs, "lora_down", "lora_up", alpha=True, rank=rank)
    return made


LAYOUTS: Final[Mapping[str, Callable[..., dict[str, Shape]]]] = {
    "diffusers": diffusers,
    "kohya": kohya,
    "xlabs": xlabs,
    "peft": fal,
    "bfl": bfl,
    "onetrainer": onetrainer,
}
"""The layouts by the name that the library gives them."""


def write(
    shapes: Mapping[str, Shape],
    *,
    scale: float = 0.05,
    seed: int = 1,
    alpha: float = _RANK,
    notes: Mapping[str, str] | None = None,
    values: Mapping[str, float] | None = None,
) -> bytes:
    """Return a safetensors file of 32-bit numbers drawn from a seed.

    Args:
        shapes: Tensors by name; one without dimensions is a scale.
        scale: Largest of the values that are drawn.
        seed: What they are drawn from.
        alpha: Value of the scales.
        notes: Metadata.
        values: Value of all elements of single tensors.
    """
    rng, header, parts, at = random.Random(seed), dict[str, Any](), list[bytes](), 0
    if notes:
        header["__metadata__"] = dict(notes)
    for name, shape in shapes.items():
        count = 1
        for size in shape:
            count *= size
        if values is not None and name in values:
            data = struct.pack("<f", values[name]) * count
        elif not shape:
            data = struct.pack("<f", alpha)
        else:
            data = struct.pack(f"<{count}f", *(rng.uniform(-scale, scale) for _ in range(count)))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
        parts.append(data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(parts)
