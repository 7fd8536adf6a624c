"""LoRA adapters on a loaded model: loaded once, mixed by weight, swapped without a change of the base.

Adapters stay loaded beside the base and are named by their content. A task that asks for them again only sets weights.
Nothing is fused: after an adapter is removed, the base is the same bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import math
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
from modelkit.flux_layers import TEXT_ENCODER, LayerNames
from modelkit.lora_layers import LoraReading, read_layers
from modelkit.requests import AdapterFile
from modelkit.tensor_file import read_header, shown

_log = structlog.get_logger(module=__name__)

SLOTS = ("subject", "product", "style", "product2")
MAX_FILE_BYTES = 4 << 30


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
    with path.open("rb") as file:
        return read_header(file, size).bytes


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
        tensors = read_lora(path, LayerNames(self._modules()))
        # diffusers activates a new adapter at once, beside the active ones. This value makes `use` set the active ones.
        self._active = ((name, math.nan),)
        # Load the tensors that were checked, not the file: it could have changed since.
        try:
            with warnings.catch_warnings():
                # peft warns that the model has adapters already, which is intended here.
                warnings.simplefilter("ignore", UserWarning)
                self._pipe.load_lora_weights(_as_diffusers_names(tensors), adapter_name=name)
        except Exception as error:
            _log.info("lora_load_failed", exc_info=error)
            self._forget(name)
            raise ModelError("The LoRA does not fit this model.") from error
        taken = self._layers_of(name)
        if taken != len(tensors) // 2:
            self._forget(name)
            raise ModelError(f"The LoRA has {len(tensors) // 2} layers for this model, and {taken} of them were taken.")
        self._loaded[name] = _Loaded(size, set())
        self._changes += 1

    def _forget(self, name: str) -> None:
        if any(name in names for names in self._pipe.get_list_adapters().values()):
            self._pipe.delete_adapters(name)

    def _layers_of(self, name: str) -> int:
        """Count the layers that an adapter is on: what the library leaves out it tells its own log alone."""
        return sum(
            name in getattr(module, "lora_A", ())
            for part in (self._pipe.transformer, self._pipe.text_encoder)
            for module in part.modules()
        )

    def _modules(self) -> dict[str, tuple[int, int]]:
        found = {}
        for part in ("transformer", "text_encoder"):
            for path, module in getattr(self._pipe, part).named_modules():
                layer = getattr(module, "base_layer", module)
                if isinstance(layer, torch.nn.Linear) and ".lora_" not in path and not path.endswith(".base_layer"):
                    found[f"{part}.{path}"] = (layer.in_features, layer.out_features)
        return found


def read_lora(path: Path, names: LayerNames) -> dict[str, torch.Tensor]:
    """Read a file's low-rank layers under the names of a model's own, with their scales folded in.

    Args:
        path: A file that `inspect` has found valid.
        names: The model's layers.

    Raises:
        ModelError: It is no plain LoRA, or made for another model.
    """
    try:
        held = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError("The LoRA could not be read.", ModelErrorKind.VALIDATION) from error
    shapes = {key: tuple(tensor.shape) for key, tensor in held.items()}
    reading = read_layers(shapes, names, is_zero=lambda key: not bool(held[key].float().any()))
    if reading.unmatched:
        layers = [shown(layer) for layer in reading.unmatched[:5]]
        _log.warning("lora_layers_unmatched", count=len(reading.unmatched), layers=layers)
    tensors = _placed(reading, held)
    _fold_scales(tensors, path)
    return tensors


def _placed(reading: LoraReading, held: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors under the names of the model's own layers, their scales folded in.

    Raises:
        ModelError: One of them holds values that are not numbers.
    """
    tensors: dict[str, torch.Tensor] = {}
    for layer in reading.layers:
        down, up = _weights(held[layer.down]), _weights(held[layer.up])
        if layer.alpha is not None:
            up = (up.float() * (float(held[layer.alpha].float().item()) / layer.rank)).to(up.dtype)
        if layer.placement.swapped:
            up = torch.cat(tuple(reversed(up.chunk(2))))
        if not (bool(torch.isfinite(down).all()) and bool(torch.isfinite(up).all())):
            raise ModelError(f"The LoRA holds values that are not numbers (layer {shown(layer.name)}).")
        begin = 0
        for target, rows in zip(layer.placement.targets, layer.rows, strict=True):
            tensors[f"{target}.lora_A.weight"] = down
            tensors[f"{target}.lora_B.weight"] = up[begin : begin + rows].contiguous()
            begin += rows
    return tensors


def _as_diffusers_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # Of a text encoder's layers diffusers knows those of the attention alone by peft's names, and all by its own.
    halves = {".lora_A.": ".lora_linear_layer.down.", ".lora_B.": ".lora_linear_layer.up."}
    named = {}
    for key, tensor in tensors.items():
        name = key
        for peft, own in halves.items():
            name = name.replace(peft, own) if key.startswith(TEXT_ENCODER) else name
        named[name] = tensor
    return named


def _weights(tensor: torch.Tensor) -> torch.Tensor:
    # Types of eight bits hold values, but no arithmetic is done in them.
    return tensor.float() if tensor.element_size() == 1 else tensor


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
