"""Captions and pictures as the network reads them: encoded once, kept in files, one encoder in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional

from modelkit.device import Device
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.pictures import open_picture, over_white
from modelkit.training.dataset import Dataset, Example
from modelkit.training.errors import TrainingFailed
from modelkit.training.files import put_file

FluxPipeline: Any = diffusers.FluxPipeline
AutoencoderKL: Any = diffusers.AutoencoderKL
# What a mask leaves to the places that it does not mark: with nothing, they would become anything.
_LEAST_WEIGHT = 0.1
# Both libraries write progress bars and advice to stderr.
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@dataclass(frozen=True, slots=True)
class Text:
    """A caption or prompt.

    Attributes:
        pooled: (1, width of CLIP).
        tokens: (1, tokens, width of T5).
    """

    pooled: torch.Tensor
    tokens: torch.Tensor


class EncodedTexts(Protocol):
    """Captions and prompts that were encoded."""

    def __getitem__(self, text: str) -> Text:
        """Return one of them."""
        ...


@dataclass(frozen=True, slots=True)
class Latents:
    """A picture: its posterior, from which every pass draws, shifted and scaled as the network expects it.

    Attributes:
        mean: (channels, h, w).
        deviation: (channels, h, w).
        weight: (1, h, w): how much each place counts; None where all count the same.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    weight: torch.Tensor | None = None


class Texts:
    """Encodes texts, each once.

    Args:
        model: The model's folder.
        length: Tokens that the long encoder reads.
        device: Where to encode.
        cache: File that keeps them.
        pause: Called before each text; raises to stop.
    """

    def __init__(self, model: Path, length: int, device: Device, *, cache: Path, pause: Callable[[], None]) -> None:
        self._model = model
        self._length = length
        self._device = device
        self._cache = cache
        self._pause = pause
        self._made: dict[str, Text] = _read_texts(cache)

    def __getitem__(self, text: str) -> Text:
        """Return a text that was encoded."""
        return self._made[text]

    def encode(self, texts: Iterable[str], done: Callable[[int], None] = lambda _: None) -> None:
        """Encode those of these texts that are not yet; the encoders are freed again.

        Args:
            texts: The texts.
            done: Told how many of them are encoded.
        """
        wanted = list(dict.fromkeys(texts))
        missing = [text for text in wanted if text not in self._made]
        if not missing:
            done(len(wanted))
            return
        pipe = loaded(
            lambda: FluxPipeline.from_pretrained(
                str(self._model),
                transformer=None,
                vae=None,
                dtype=self._device.dtype,
                local_files_only=True,
                use_safetensors=True,
            ).to(self._device.name)
        )
        for number, text in enumerate(missing, len(wanted) - len(missing) + 1):
            self._pause()
            # One by one: a text is the same bit for bit whatever it is encoded with.
            with torch.no_grad():
                tokens, pooled, _ = pipe.encode_prompt(
                    prompt=[text], prompt_2=None, max_sequence_length=self._length, device=self._device.name
                )
            self._made[text] = Text(pooled.cpu(), tokens.cpu())
            done(number)
        self._keep()

    def _keep(self) -> None:
        names = list(self._made)
        tensors: dict[str, torch.Tensor] = {}
        for number, name in enumerate(names):
            tensors[f"{number}.pooled"] = self._made[name].pooled.contiguous()
            tensors[f"{number}.tokens"] = self._made[name].tokens.contiguous()
        put_file(self._cache, lambda path: save_file(tensors, path, {"texts": json.dumps(names)}))


def _read_texts(cache: Path) -> dict[str, Text]:
    if not cache.is_file():
        return {}
    try:
        with safe_open(cache, "pt") as file:
            names = json.loads((file.metadata() or {})["texts"])
            return {
                name: Text(file.get_tensor(f"{number}.pooled"), file.get_tensor(f"{number}.tokens"))
                for number, name in enumerate(names)
            }
    except (SafetensorError, OSError, ValueError, KeyError):
        return {}


def encode_pictures(
    model: Path,
    dataset: Dataset,
    device: Device,
    cache: Path,
    *,
    pause: Callable[[], None],
    done: Callable[[int], None],
) -> list[Latents]:
    """Encode all pictures, or read them where they were encoded before; the autoencoder is freed again.

    Args:
        model: The model's folder.
        dataset: The pictures.
        device: Where to encode.
        cache: File that keeps them.
        pause: Called before each picture; raises to stop.
        done: Told how many are encoded.

    Raises:
        TrainingFailed: A picture cannot be read.
    """
    kept = _read_latents(cache, dataset)
    if kept is not None:
        done(len(kept))
        return kept
    vae = load_autoencoder(model, device, torch.float32)  # nothing else is in memory, and it is done once
    made: list[Latents] = []
    for example in dataset.examples:
        pause()
        made.append(_encode(vae, example, device))
        done(len(made))
    tensors: dict[str, torch.Tensor] = {}
    for number, latents in enumerate(made):
        tensors[f"{number}.mean"] = latents.mean
        tensors[f"{number}.deviation"] = latents.deviation
        if latents.weight is not None:
            tensors[f"{number}.weight"] = latents.weight
    put_file(cache, lambda path: save_file(tensors, path, {"dataset": dataset.hash}))
    return made


def load_autoencoder(model: Path, device: Device, dtype: torch.dtype) -> Any:
    """Load a model's autoencoder onto a device, in a type of numbers."""
    return loaded(
        lambda: (
            AutoencoderKL.from_pretrained(
                str(model), subfolder="vae", dtype=dtype, local_files_only=True, use_safetensors=True
            )
            .to(device.name)
            .requires_grad_(requires_grad=False)
            .eval()
        )
    )


def loaded(load: Callable[[], Any]) -> Any:
    """Load a part of the model.

    Raises:
        TrainingFailed: It does not load.
    """
    try:
        return load()
    except (MemoryError, torch.cuda.OutOfMemoryError) as error:
        raise TrainingFailed(
            ModelErrorKind.RESOURCE, "The device has too little memory to train this model."
        ) from error
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise TrainingFailed(
            ModelErrorKind.RESOURCE, "The model to train on could not be loaded on this worker."
        ) from error


def _encode(vae: Any, example: Example, device: Device) -> Latents:
    try:
        image = over_white(open_picture(example.image))
    except ModelError as error:
        raise TrainingFailed(ModelErrorKind.VALIDATION, "A picture of the dataset could not be read.") from error
    if image.size != example.bucket:
        image = image.resize(example.bucket, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        posterior = vae.encode(pixels.to(device.name)).latent_dist
    shift, scale = vae.config.shift_factor or 0.0, vae.config.scaling_factor
    mean, deviation = (posterior.mean - shift) * scale, posterior.std * scale
    return Latents(
        mean[0].cpu().contiguous(), deviation[0].cpu().contiguous(), _weight(example, (mean.shape[-2], mean.shape[-1]))
    )


def _weight(example: Example, grid: tuple[int, int]) -> torch.Tensor | None:
    if example.mask is None:
        return None
    try:
        with Image.open(example.mask) as image:
            mask = image.convert("L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise TrainingFailed(ModelErrorKind.VALIDATION, "A mask of the dataset could not be read.") from error
    levels = torch.from_numpy(np.asarray(mask, dtype=np.float32))[None, None] / 255
    small = functional.interpolate(levels, size=grid, mode="area")[0]
    return (small * (1 - _LEAST_WEIGHT) + _LEAST_WEIGHT).contiguous()


def _read_latents(cache: Path, dataset: Dataset) -> list[Latents] | None:
    if not cache.is_file():
        return None
    try:
        with safe_open(cache, "pt") as file:
            if (file.metadata() or {}).get("dataset") != dataset.hash:
                return None
            keys = set(file.keys())
            return [
                Latents(
                    file.get_tensor(f"{number}.mean"),
                    file.get_tensor(f"{number}.deviation"),
                    file.get_tensor(f"{number}.weight") if f"{number}.weight" in keys else None,
                )
                for number in range(len(dataset.examples))
            ]
    except (SafetensorError, OSError, KeyError):
        return None
