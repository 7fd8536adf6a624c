"""LoRA adapters on a loaded model: loaded once, mixed by weight, swapped without a change of the base.

Adapters stay loaded beside the base and are named by their content. A task that asks for them again only sets weights.
Nothing is fused: after an adapter is removed, the base is the same bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from modelkit.errors import ModelError, ModelErrorKind
from modelkit.requests import AdapterFile

_log = structlog.get_logger(module=__name__)

SLOTS = ("subject", "product", "style", "product2")
MAX_FILE_BYTES = 4 << 30
_MAX_HEADER_BYTES = 16 << 20
_MAX_TENSORS = 20_000
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
# What each training tool calls the two halves of a low-rank layer, and its scale.
_DOWN, _UP, _ALPHA = ("lora_A", "lora_down", "down"), ("lora_B", "lora_up", "up"), "alpha"
# Parts of names by which other kinds of adapters are known, and what these are called. The library that draws leaves
# some of them out without an error, and the picture would be that of another adapter.
_OTHER_KINDS = (
    (("dora_scale", "lora_magnitude_vector", "magnitude"), "a DoRA"),
    (("hada_", "hada."), "a LoHa"),
    (("lokr_",), "a LoKr"),
    (("oft_", "boft_", "oft."), "an OFT adapter"),
    (("lora_mid", "lora_C"), "a LoCon for convolutions"),
    (("a1.weight", "a2.weight", "b1.weight", "b2.weight"), "a GLoRA"),
    (("on_input",), "an IA3 adapter"),
    (("diff_b", ".diff"), "a difference of whole layers"),
)
# Encoders that the library does not adapt.
_UNREAD_ENCODERS = ("lora_te2_", "lora_te3_", "text_encoder_2.", "text_encoder_3.")


@dataclass(slots=True)
class _Loaded:
    bytes: int
    labels: set[str]


def inspect(path: Path) -> int:
    """Check that a file is a valid safetensors file of plausible content, without reading its tensors.

    Returns:
        Bytes of its tensors.

    Raises:
        ModelError: The file is not valid.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ModelError(f"The LoRA is larger than {MAX_FILE_BYTES >> 30} GiB.")
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ValueError("header length")
            header: dict[str, Any] = json.loads(file.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        types = {entry["dtype"] for entry in tensors.values()} - _BYTES.keys()
        if types:
            kind = _shown(min(map(str, types)))
            raise ModelError(f"The LoRA holds tensors of the type {kind}, which is not supported.")
        spans = sorted(_span(entry) for entry in tensors.values())
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError("The LoRA is not a safetensors file.") from error
    if not tensors or len(tensors) > _MAX_TENSORS:
        raise ModelError(f"The LoRA must hold 1 to {_MAX_TENSORS} tensors, and holds {len(tensors)}.")
    end = 0
    for start, stop in spans:
        if start != end:
            raise ModelError("The LoRA is not a safetensors file: its tensors overlap or leave gaps.")
        end = stop
    if end != size - 8 - length:
        raise ModelError("The LoRA is cut short, or longer than it says.")
    return end


def _span(entry: Mapping[str, Any]) -> tuple[int, int]:
    start, stop = entry["data_offsets"]
    if math.prod(entry["shape"]) * _BYTES[entry["dtype"]] != stop - start or start < 0:
        raise ValueError("size")
    return start, stop


class Adapters:
    """The adapters of one pipeline. The owner must serialise the calls.

    Args:
        pipe: A diffusers FLUX pipeline.
        max_loaded: Most adapters kept loaded; beyond it the least recently used are unloaded.
        max_bytes: Most bytes of adapters kept loaded.
    """

    def __init__(self, pipe: Any, *, max_loaded: int = 16, max_bytes: int = 2 << 30) -> None:
        self._pipe = pipe
        self._max_loaded = max_loaded
        self._max_bytes = max_bytes
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._active: tuple[tuple[str, float], ...] = ()
        self._labels: tuple[str, ...] = ()
        self._changes = 0

    @property
    def changes(self) -> int:
        """How often an adapter was loaded or unloaded."""
        return self._changes

    @property
    def bytes(self) -> int:
        """Bytes that the loaded adapters hold."""
        return sum(entry.bytes for entry in self._loaded.values())

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the loaded adapters; may be read while another thread loads some."""
        return self._labels

    def use(self, files: Sequence[AdapterFile]) -> None:
        """Activate exactly these adapters. A file that is named twice gets the sum of its weights.

        Raises:
            ModelError: A file is no LoRA, or does not fit the model. The base is unchanged, and the next call sets the
                active adapters anew.
        """
        try:
            self._use(files)
        finally:
            self._note_labels()

    def clear(self) -> None:
        """Unload all adapters, so that the layers are the base's own again."""
        if self._loaded:
            self._pipe.unload_lora_weights()
            self._changes += 1
        self._loaded.clear()
        self._active = ()
        self._note_labels()

    def _note_labels(self) -> None:
        self._labels = tuple(sorted(label for entry in self._loaded.values() for label in entry.labels))

    def _use(self, files: Sequence[AdapterFile]) -> None:
        weights: dict[str, float] = {}
        for file in files:
            name = _content_name(file.path)
            weights[name] = weights.get(name, 0.0) + file.weight
            if name not in self._loaded:
                self._load(name, file.path)
            self._loaded[name].labels.add(file.label or name)
            self._loaded.move_to_end(name)
        self._evict(keep=set(weights))
        wanted = tuple((name, weight) for name, weight in weights.items() if weight)
        if wanted == self._active:
            return
        if wanted:
            self._pipe.enable_lora()
            self._pipe.set_adapters([name for name, _ in wanted], [weight for _, weight in wanted])
        elif self._loaded:
            self._pipe.disable_lora()
        self._active = wanted

    def _evict(self, keep: set[str]) -> None:
        for name in list(self._loaded):
            if len(self._loaded) <= self._max_loaded and self.bytes <= self._max_bytes:
                return
            if name not in keep:
                self._pipe.delete_adapters(name)
                del self._loaded[name]
                self._changes += 1

    def _load(self, name: str, path: Path) -> None:
        size = inspect(path)
        try:
            held = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError("The LoRA could not be read.", ModelErrorKind.VALIDATION) from error
        named = _low_rank(held)
        try:
            state = self._pipe.lora_state_dict(dict(named), return_alphas=True)
            tensors, alphas = dict(state[0]), state[1] or {}
        except Exception as error:
            _log.info("lora_not_understood", exc_info=error)
            raise ModelError("The LoRA's layers are not named as any known training names them.") from error
        self._check(tensors)
        _check_all_taken(named, tensors, alphas)
        _fold_scales(tensors, path)
        # diffusers activates a new adapter at once, beside the active ones. This value makes `use` set the active ones.
        self._active = ((name, math.nan),)
        # Load the tensors that were checked, not the file: it could have changed since.
        try:
            with warnings.catch_warnings():
                # peft warns that the model has adapters already, which is intended here.
                warnings.simplefilter("ignore", UserWarning)
                self._pipe.load_lora_weights({**tensors, **alphas}, adapter_name=name)
        except Exception as error:
            _log.info("lora_load_failed", exc_info=error)
            if any(name in names for names in self._pipe.get_list_adapters().values()):
                self._pipe.delete_adapters(name)
            raise ModelError("The LoRA does not fit this model.") from error
        self._loaded[name] = _Loaded(size, set())
        self._changes += 1

    def _check(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Refuse a LoRA that does not fit: diffusers would widen the base, drop parts, or fail half way."""
        modules = {
            f"{part}.{path}": module
            for part in ("transformer", "text_encoder")
            for path, module in getattr(self._pipe, part).named_modules()
        }
        for key, tensor in tensors.items():
            path, _, which = key.partition(".lora_")
            # transformers flattened CLIP's modules; older LoRAs name the layers by the deeper path.
            module = modules.get(path) or modules.get(path.replace("text_encoder.text_model.", "text_encoder."))
            layer = getattr(module, "base_layer", module)
            if not which.startswith(("A.", "B.", "down.", "up.")):
                raise ModelError(f"The LoRA holds more than low-rank layers ({_shown(key)}); such are not supported.")
            if not isinstance(layer, torch.nn.Linear):
                raise ModelError(f"The LoRA was made for another model: this one has no layer {_shown(path)}.")
            down = which.startswith(("A.", "down."))
            have, want = (
                tensor.shape[1 if down else 0] if tensor.ndim == 2 else 0,
                (layer.in_features if down else layer.out_features),
            )
            if have != want:
                raise ModelError(
                    f"The LoRA was made for another model: its layer {_shown(path)} has {have} "
                    f"{'inputs' if down else 'outputs'}, this model's has {want}."
                )
            if not bool(torch.isfinite(tensor).all()):
                raise ModelError(f"The LoRA holds values that are not numbers (layer {_shown(path)}).")


def _low_rank(held: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a file's low-rank layers, in types that can be computed with.

    Raises:
        ModelError: The file holds anything else that would change the picture, or half a layer.
    """
    layers: dict[str, torch.Tensor] = {}
    halves: dict[str, set[bool]] = {}
    for key, tensor in held.items():
        layer, part = _parts(key)
        if part is None:
            if not bool(tensor.float().any()):
                continue  # some tools write what they did not train; it adds nothing
            raise ModelError(_refusal(key))
        if key.startswith(_UNREAD_ENCODERS):
            raise ModelError(f"The LoRA changes a text encoder that is not adapted ({_shown(key)}).")
        # Types of eight bits hold values, but no arithmetic is done in them.
        layers[key] = tensor.float() if tensor.element_size() == 1 else tensor
        if part != _ALPHA:
            halves.setdefault(layer, set()).add(part in _DOWN)
    for layer, found in halves.items():
        if len(found) != 2:
            raise ModelError(f"The LoRA lacks half of its layer {_shown(layer)}.")
    return layers


def _parts(key: str) -> tuple[str, str | None]:
    """Return the layer that a tensor belongs to, and which part of it: None for none of a low-rank layer."""
    layer, _, last = key.rpartition(".")
    if last == _ALPHA:
        return layer, last
    names = layer.split(".")
    # peft may write the adapter's name behind the part's: `lora_A.default.weight`.
    for at in (-1, -2):
        if last == "weight" and len(names) >= -at and names[at] in _DOWN + _UP:
            return ".".join(names[:at]), names[at]
    return key, None


def _refusal(key: str) -> str:
    for marks, name in _OTHER_KINDS:
        if any(mark in key for mark in marks):
            return f"The LoRA is {name} ({_shown(key)}); only plain low-rank layers are supported."
    return f"The LoRA holds more than low-rank layers ({_shown(key)}); such are not supported."


def _check_all_taken(
    named: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], alphas: Mapping[str, Any]
) -> None:
    """Refuse a file of which the library took a part: what it leaves out it tells its own log alone."""
    expected = 0
    for key in named:
        layer, part = _parts(key)
        if part in _DOWN:
            # One layer of the original model is three or four here.
            fused = 3 if "qkv" in layer.rpartition(".")[2] else 4 if layer.endswith("linear1") else 1
            expected += fused
    parted = (key.partition(".lora_") for key in tensors)
    taken = {path for path, _, which in parted if which.startswith(("A.", "down."))}
    if len(taken) < expected:
        raise ModelError(f"The LoRA has {expected} layers for this kind of model, and {len(taken)} of them are known.")
    for key in alphas:
        if _parts(key)[0] not in taken:
            raise ModelError(f"The LoRA scales a layer that it does not hold ({_shown(key)}).")


def _fold_scales(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Fold the scale that the file's metadata names (alpha / rank) into its tensors.

    diffusers would build a layer configuration from the metadata. Read as plain numbers, the metadata can set a scale
    and nothing else.
    """
    with safe_open(path, "pt") as file:
        notes = (file.metadata() or {}).get("lora_adapter_metadata")
    if not notes:
        return
    try:
        config = json.loads(notes)
        for key, tensor in tensors.items():
            layer, found, _ = key.partition(".lora_B.")
            if not found:
                continue
            part, _, name = layer.partition(".")
            alpha = config.get(f"{part}.alpha_pattern", {}).get(name, config.get(f"{part}.lora_alpha"))
            if alpha is not None:
                rank = tensor.shape[1]
                tensors[key] = tensor * (float(alpha) / (math.sqrt(rank) if config.get(f"{part}.use_rslora") else rank))
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError("The LoRA's metadata of its training is not readable.") from error


def _content_name(path: Path) -> str:
    with path.open("rb") as file:
        return "lora_" + hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _shown(key: str) -> str:
    """Return a layer's name in characters that are safe in a message: it comes from an untrusted file."""
    return "".join(character for character in key if character.isalnum() or character in "._-")[:100]
