"""The linear layers of a FLUX by its configuration, and every name that training tools give them.

Free of torch, so that a file is judged where no model can be loaded.

Sources of the names: the original model (github.com/black-forest-labs/flux, `model.py` and `modules/layers.py`), which
kohya's sd-scripts, ComfyUI and XLabs (x-flux, `src/flux/modules/layers.py`) write; diffusers'
`FluxTransformer2DModel`, which diffusers, ai-toolkit, peft and OneTrainer write; CLIP of transformers.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

TRANSFORMER = "transformer."
TEXT_ENCODER = "text_encoder."
_TIME_CHANNELS = 256

Modules = Mapping[str, tuple[int, int]]
"""Inputs and outputs of linear layers by diffusers' path to them, from `transformer.` or `text_encoder.` on."""


class Layout(enum.StrEnum):
    """How a training tool names the layers of its LoRA."""

    DIFFUSERS = "diffusers"
    PEFT = "peft"
    KOHYA = "kohya"
    BFL = "bfl"
    XLABS = "xlabs"
    ONETRAINER = "onetrainer"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a layer of a file belongs.

    Attributes:
        layout: Whose name it is.
        targets: Layers of the model. A layer of the original model may be several here: the rows of its output are
            theirs in this order.
        swapped: The two halves of its output are in the other order here: shift and scale of the last norm.
    """

    layout: Layout
    targets: tuple[str, ...]
    swapped: bool = False


def modules_of(transformer: Mapping[str, Any], text_encoder: Mapping[str, Any] | None = None) -> Modules:
    """Return the layers of a model.

    Args:
        transformer: The content of `transformer/config.json`.
        text_encoder: That of `text_encoder/config.json`, of a CLIP.

    Raises:
        KeyError: A configuration lacks a member: it is of no such model.
        TypeError: A member is no number.
    """
    width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    channels = transformer["in_channels"]
    made = {
        "x_embedder": (channels, width),
        "context_embedder": (transformer["joint_attention_dim"], width),
        "norm_out.linear": (width, 2 * width),
        "proj_out": (width, (transformer.get("out_channels") or channels) * transformer.get("patch_size", 1) ** 2),
    }
    embedders = {"timestep_embedder": _TIME_CHANNELS, "text_embedder": transformer["pooled_projection_dim"]}
    if transformer.get("guidance_embeds"):
        embedders["guidance_embedder"] = _TIME_CHANNELS
    for name, inputs in embedders.items():
        made[f"time_text_embed.{name}.linear_1"] = (inputs, width)
        made[f"time_text_embed.{name}.linear_2"] = (width, width)
    for index in range(transformer["num_layers"]):
        made |= {f"transformer_blocks.{index}.{name}": size for name, size in _double(width).items()}
    for index in range(transformer["num_single_layers"]):
        made |= {f"single_transformer_blocks.{index}.{name}": size for name, size in _single(width).items()}
    modules = {TRANSFORMER + name: size for name, size in made.items()}
    if text_encoder is not None:
        inner, hidden = text_encoder["hidden_size"], text_encoder["intermediate_size"]
        for index in range(text_encoder["num_hidden_layers"]):
            layer = f"{TEXT_ENCODER}text_model.encoder.layers.{index}"
            modules |= {f"{layer}.self_attn.{part}_proj": (inner, inner) for part in ("q", "k", "v", "out")}
            modules |= {f"{layer}.mlp.fc1": (inner, hidden), f"{layer}.mlp.fc2": (hidden, inner)}
    return modules


def _double(width: int) -> dict[str, tuple[int, int]]:
    square = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    made = {f"attn.{name}": (width, width) for name in square}
    for norm, feed in (("norm1", "ff"), ("norm1_context", "ff_context")):
        made[f"{norm}.linear"] = (width, 6 * width)
        made[f"{feed}.net.0.proj"] = (width, 4 * width)
        made[f"{feed}.net.2"] = (4 * width, width)
    return made


def _single(width: int) -> dict[str, tuple[int, int]]:
    made = {f"attn.{name}": (width, width) for name in ("to_q", "to_k", "to_v")}
    return made | {"norm.linear": (width, 3 * width), "proj_mlp": (width, 4 * width), "proj_out": (5 * width, width)}


# Names within the original model, and what they are in diffusers'.
_OUTER = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    **{
        f"{original}.{end}_layer": f"time_text_embed.{name}.linear_{number}"
        for original, name in (
            ("time_in", "timestep_embedder"),
            ("vector_in", "text_embedder"),
            ("guidance_in", "guidance_embedder"),
        )
        for number, end in ((1, "in"), (2, "out"))
    },
}
_SWAPPED = "norm_out.linear"
_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
_IN_DOUBLE: Mapping[str, tuple[str, ...]] = {
    "img_attn.qkv": _QKV,
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_attn.qkv": _ADDED_QKV,
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
}
_IN_SINGLE: Mapping[str, tuple[str, ...]] = {
    "linear1": (*_QKV, "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
# XLabs' processors; 1 is the image's stream, 2 the text's.
_XLABS_DOUBLE: Mapping[str, tuple[str, ...]] = {
    "processor.qkv_lora1": _QKV,
    "processor.qkv_lora2": _ADDED_QKV,
    "processor.proj_lora1": ("attn.to_out.0",),
    "processor.proj_lora2": ("attn.to_add_out",),
}
_XLABS_SINGLE: Mapping[str, tuple[str, ...]] = {"processor.qkv_lora": _QKV, "processor.proj_lora": ("proj_out",)}


class LayerNames:
    """Every known name of the layers of one model.

    Args:
        modules: Its layers.
    """

    def __init__(self, modules: Modules) -> None:
        self._modules = modules
        self._known: dict[str, Placement] = {}
        for path in modules:
            if path.startswith(TRANSFORMER):
                self._add_transformer(path)
            else:
                self._add_text_encoder(path)
        for original, layout, targets in self._originals():
            self._add_original(original, layout, targets)

    @property
    def modules(self) -> Modules:
        """The layers."""
        return self._modules

    def find(self, layer: str) -> Placement | None:
        """Return where a layer of a file belongs; None where this model has none of that name."""
        return self._known.get(layer)

    def _add_transformer(self, path: str) -> None:
        name = path.removeprefix(TRANSFORMER)
        flat = name.replace(".", "_")
        self._add(Layout.DIFFUSERS, (path,), name, path)
        self._add(Layout.PEFT, (path,), f"base_model.model.{name}", f"base_model.model.{path}")
        self._add(Layout.ONETRAINER, (path,), f"lora_transformer_{flat}")
        self._add(Layout.KOHYA, (path,), f"lora_unet_{flat}")

    def _add_text_encoder(self, path: str) -> None:
        name = path.removeprefix(TEXT_ENCODER).removeprefix("text_model.")
        flat = "text_model_" + name.replace(".", "_")
        self._add(Layout.DIFFUSERS, (path,), f"{TEXT_ENCODER}{name}", f"{TEXT_ENCODER}text_model.{name}")
        self._add(Layout.KOHYA, (path,), f"lora_te_{flat}", f"lora_te1_{flat}")
        self._add(Layout.BFL, (path,), f"text_encoders.clip_l.transformer.text_model.{name}")

    def _add_original(self, original: str, layout: Layout, targets: tuple[str, ...]) -> None:
        targets = tuple(TRANSFORMER + target for target in targets)
        if not all(target in self._modules for target in targets):
            return
        if layout is Layout.XLABS:
            self._add(Layout.XLABS, targets, original, f"diffusion_model.{original}")
            return
        self._add(Layout.BFL, targets, original, f"diffusion_model.{original}", f"model.diffusion_model.{original}")
        self._add(Layout.PEFT, targets, f"base_model.model.{original}")
        self._add(Layout.KOHYA, targets, "lora_unet_" + original.replace(".", "_"))

    def _originals(self) -> Iterator[tuple[str, Layout, tuple[str, ...]]]:
        for original, target in _OUTER.items():
            yield original, Layout.BFL, (target,)
        folders = (
            ("double_blocks", "transformer_blocks", ((Layout.BFL, _IN_DOUBLE), (Layout.XLABS, _XLABS_DOUBLE))),
            ("single_blocks", "single_transformer_blocks", ((Layout.BFL, _IN_SINGLE), (Layout.XLABS, _XLABS_SINGLE))),
        )
        for theirs, ours, tables in folders:
            blocks = {name.split(".")[2] for name in self._modules if name.startswith(f"{TRANSFORMER}{ours}.")}
            for index in blocks:
                for layout, table in tables:
                    for name, targets in table.items():
                        yield f"{theirs}.{index}.{name}", layout, tuple(f"{ours}.{index}.{one}" for one in targets)

    def _add(self, layout: Layout, targets: tuple[str, ...], *names: str) -> None:
        for name in names:
            # The original's last norm has its halves in the other order; diffusers' own names have not.
            original = layout not in {Layout.DIFFUSERS, Layout.ONETRAINER} and "final_layer" in name
            self._known.setdefault(name, Placement(layout, targets, original and targets[0].endswith(_SWAPPED)))
