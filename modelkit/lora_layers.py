"""The low-rank layers of a LoRA file by the names and shapes of its tensors: whose layout, which layers, what is amiss.

Free of torch: the same judgement holds where a file comes in and where it is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from modelkit.errors import ModelError
from modelkit.flux_layers import LayerNames, Layout, Placement
from modelkit.tensor_file import shown

# What each training tool calls the two halves of a low-rank layer, and its scale.
DOWN, UP, ALPHA = ("lora_A", "lora_down", "down"), ("lora_B", "lora_up", "up"), "alpha"
# Older diffusers put one name more before the halves.
_WRAPPERS = (".lora_linear_layer", ".lora")
# Parts of names by which other kinds of adapters are known, and what these are called. Libraries that draw leave some
# of them out without an error, and the picture would be that of another adapter.
_OTHER_KINDS: Final = (
    (("dora_scale", "lora_magnitude_vector", "magnitude"), "a DoRA"),
    (("hada_", "hada."), "a LoHa"),
    (("lokr_",), "a LoKr"),
    (("query_norm.scale", "key_norm.scale", "norm.query_norm", "norm.key_norm"), "a control LoRA of BFL"),
    (("oft_", "boft_", "oft."), "an OFT adapter"),
    (("lora_mid", "lora_C"), "a LoCon for convolutions"),
    (("a1.weight", "a2.weight", "b1.weight", "b2.weight"), "a GLoRA"),
    (("on_input",), "an IA3 adapter"),
    (("bundle_emb",), "a LoRA with embeddings of its own"),
    (("diff_b", ".diff"), "a difference of whole layers"),
)
# Encoders that are not adapted.
_UNREAD_ENCODERS = ("lora_te2_", "lora_te3_", "text_encoder_2.", "text_encoder_3.", "text_encoders.t5xxl.")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class LowRankLayer:
    """A layer of a file that belongs to the model.

    Attributes:
        name: Its name in the file.
        down: Name of the tensor that leads into the low rank, of the shape (rank, inputs).
        up: Name of the tensor that leads out, of the shape (outputs, rank).
        alpha: Name of its scale, which counts as `alpha / rank`; None for 1.
        rank: Its rank.
        rows: Rows of `up` that belong to each target.
        placement: Where it belongs.
    """

    name: str
    down: str
    up: str
    alpha: str | None
    rank: int
    rows: tuple[int, ...]
    placement: Placement


@dataclass(frozen=True, slots=True)
class LoraReading:
    """What a file holds for a model.

    Attributes:
        layout: Whose names it uses.
        rank: The rank of most of its layers.
        layers: Layers that the model has.
        unmatched: Names of layers that it has not: they change nothing.
    """

    layout: Layout
    rank: int
    layers: tuple[LowRankLayer, ...]
    unmatched: tuple[str, ...]


def read_layers(shapes: Shapes, names: LayerNames, *, is_zero: Callable[[str], bool]) -> LoraReading:
    """Find the layers of a file in a model.

    Args:
        shapes: The shapes of its tensors.
        names: The model's layers.
        is_zero: Tells whether a tensor holds nothing but zeros.

    Raises:
        ModelError: It is no plain LoRA, or made for another model; the message says why.
    """
    layers: list[LowRankLayer] = []
    unmatched: list[str] = []
    for layer, parts in _halves(shapes, is_zero).items():
        found = names.find(layer)
        if found is None:
            unmatched.append(layer)
        else:
            layers.append(_layer(layer, parts, found, shapes, names))
    if not layers:
        raise ModelError(f"The LoRA was made for another model: this one has no layer {shown(min(unmatched))}.")
    taken = Counter(target for layer in layers for target in layer.placement.targets)
    for target, times in taken.items():
        if times > 1:
            raise ModelError(f"The LoRA names a layer twice ({shown(target)}).")
    layouts = Counter(layer.placement.layout for layer in layers)
    ranks = Counter(layer.rank for layer in layers)
    return LoraReading(
        layouts.most_common(1)[0][0], ranks.most_common(1)[0][0], tuple(layers), tuple(sorted(unmatched))
    )


def _halves(shapes: Shapes, is_zero: Callable[[str], bool]) -> dict[str, dict[str, str]]:
    """Return the tensors of each layer.

    Raises:
        ModelError: The file holds anything else that would change the picture, or half a layer.
    """
    layers: dict[str, dict[str, str]] = {}
    # Some tools write what they did not train, as zeros; it adds nothing.
    foreign = [key for key in shapes if _parts(key)[1] is None and not is_zero(key)]
    if foreign:
        raise ModelError(_refusal(foreign))
    for key in shapes:
        layer, part = _parts(key)
        if part is None:
            continue
        if key.startswith(_UNREAD_ENCODERS):
            raise ModelError(f"The LoRA changes a text encoder that is not adapted ({shown(key)}).")
        if layers.setdefault(layer, {}).setdefault(part, key) != key:
            raise ModelError(f"The LoRA holds a part of a layer twice ({shown(key)}).")
    if not layers:
        raise ModelError("The LoRA holds no low-rank layers.")
    for layer, parts in layers.items():
        if parts.keys() == {ALPHA}:
            raise ModelError(f"The LoRA scales a layer that it does not hold ({shown(layer)}).")
        if not parts.keys() >= {DOWN[0], UP[0]}:
            raise ModelError(f"The LoRA lacks half of its layer {shown(layer)}.")
    return layers


def _parts(key: str) -> tuple[str, str | None]:
    """Return the layer that a tensor belongs to, and which part of it: None for none of a low-rank layer."""
    layer, _, last = key.rpartition(".")
    if last == ALPHA:
        return layer, ALPHA
    names = layer.split(".")
    # peft may write the adapter's name behind the part's: `lora_A.default.weight`.
    for at in (-1, -2):
        if last == "weight" and len(names) >= -at and names[at] in DOWN + UP:
            path = ".".join(names[:at])
            for wrapper in _WRAPPERS:
                path = path.removesuffix(wrapper)
            return path, DOWN[0] if names[at] in DOWN else UP[0]
    return key, None


def _layer(layer: str, parts: Mapping[str, str], found: Placement, shapes: Shapes, names: LayerNames) -> LowRankLayer:
    sizes = [names.modules[target] for target in found.targets]
    rows = tuple(outputs for _, outputs in sizes)
    down, up = shapes[parts[DOWN[0]]], shapes[parts[UP[0]]]
    for kind, have, want in (
        ("inputs", down[1] if len(down) == 2 else 0, sizes[0][0]),
        ("outputs", up[0] if len(up) == 2 else 0, sum(rows)),
    ):
        if have != want:
            raise ModelError(
                f"The LoRA was made for another model: its layer {shown(layer)} has {have} {kind}, "
                f"this model's has {want}."
            )
    if down[0] != up[1] or not down[0]:
        raise ModelError(f"The LoRA's layer {shown(layer)} leads into rank {down[0]} and out of rank {up[1]}.")
    alpha = parts.get(ALPHA)
    if alpha is not None and shapes[alpha] not in {(), (1,)}:
        raise ModelError(f"The LoRA's layer {shown(layer)} has a scale that is no number.")
    return LowRankLayer(layer, parts[DOWN[0]], parts[UP[0]], alpha, down[0], rows, found)


def _refusal(keys: Sequence[str]) -> str:
    for marks, name in _OTHER_KINDS:
        for key in keys:
            if any(mark in key for mark in marks):
                return f"The LoRA is {name} ({shown(key)}); only plain low-rank layers are supported."
    return f"The LoRA holds more than low-rank layers ({shown(keys[0])}); such are not supported."
