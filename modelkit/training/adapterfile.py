"""The adapter file that a training ends in: low-rank layers by diffusers' names, and metadata that other tools read."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save

from modelkit.adapters import inspect, read_lora
from modelkit.card import ModelCard
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.flux_layers import TRANSFORMER, LayerNames
from modelkit.training.errors import TrainingFailed
from modelkit.training.files import put_file
from modelkit.training.plan import TrainingPlan

_THUMBNAIL_SIDE = 256
_HEADER_LENGTH_BYTES = 8


def write_adapter(
    path: Path, layers: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """Write an adapter; return the file's SHA-256 and its metadata, with the hash of its tensors."""
    tensors = dict(layers)
    hashed = {**metadata, "modelspec.hash_sha256": f"0x{tensor_hash(save(tensors))}", "format": "pt"}
    content = save(tensors, hashed)
    put_file(path, lambda fresh: _write(fresh, content))
    return hashlib.sha256(content).hexdigest(), hashed


def read_adapter(path: Path, layers: Mapping[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Read the layers of an adapter, in any layout that generation takes, as `write_adapter` writes them.

    Args:
        path: The file.
        layers: Inputs and outputs of the transformer's linear layers, by their names in it.

    Raises:
        TrainingFailed: It is no adapter for this model.
    """
    try:
        inspect(path)
        return read_lora(path, LayerNames({f"{TRANSFORMER}{name}": size for name, size in layers.items()}))
    except (ModelError, OSError) as error:
        why = error.message if isinstance(error, ModelError) else "It could not be read."
        raise TrainingFailed(
            ModelErrorKind.VALIDATION, f"The training cannot start from the adapter that it names. {why}"
        ) from error


def tensor_hash(content: bytes) -> str:
    """Return the SHA-256 of a safetensors file without its header, as Stability AI's model specification says."""
    length = int.from_bytes(content[:_HEADER_LENGTH_BYTES], "little")
    return hashlib.sha256(memoryview(content)[_HEADER_LENGTH_BYTES + length :]).hexdigest()


def metadata_of(
    plan: TrainingPlan,
    card: ModelCard,
    layers: Sequence[str],
    *,
    rank: int,
    steps: int,
    pictures: int,
    side: int,
    dataset: str,
    optimizer: str,
    thumbnail: bytes | None,
) -> dict[str, str]:
    """Return metadata: `modelspec.*` (sai_model_spec 1.0.1), `ss_*` of kohya's scripts, and diffusers' own.

    Args:
        plan: How it was trained.
        card: The base model's card.
        layers: Names of the layers in the transformer.
        rank: Rank of the layers; their alpha is the same.
        steps: Steps that were taken.
        pictures: Pictures of the dataset.
        side: Side of the samples in pixels.
        dataset: The dataset's hash.
        optimizer: Optimiser that ran.
        thumbnail: A JPEG.
    """
    base = "flux-1-dev" if card.guidance.embedded else "flux-1"
    config = {
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(layers),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    metadata = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{base}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": plan.trigger_word,
        "modelspec.trigger_phrase": plan.trigger_word,
        "modelspec.date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": "flow",
        "ss_base_model_version": "flux1",
        "ss_sd_model_name": card.name,
        "ss_network_module": "peft.lora" if plan.training_type == "LORA" else "full weights, as low-rank layers",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_steps": str(steps),
        "ss_learning_rate": repr(plan.learning_rate),
        "ss_optimizer": optimizer,
        "ss_seed": str(plan.seed),
        "ss_num_train_images": str(pictures),
        "ss_batch_size_per_device": str(plan.batch_size),
        "ss_gradient_accumulation_steps": str(plan.gradient_accumulation),
        "atelier.dataset": dataset,
        "lora_adapter_metadata": json.dumps({f"transformer.{name}": value for name, value in config.items()}),
    }
    if thumbnail is not None:
        metadata["modelspec.thumbnail"] = f"data:image/jpeg;base64,{base64.b64encode(thumbnail).decode()}"
    return metadata


def thumbnail_of(picture: Path) -> bytes:
    """Return a picture as a small JPEG."""
    with Image.open(picture) as image:
        small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return file.getvalue()


def closest(samples: Sequence[Path], pictures: Sequence[Path]) -> tuple[Path, int]:
    """Return the sample that looks most like one of the pictures, by colours on a coarse grid, and how far it is."""
    wanted = [_coarse(picture) for picture in pictures]

    def distance(sample: Path) -> int:
        own = _coarse(sample)
        return min(sum((a - b) ** 2 for a, b in zip(own, other, strict=True)) for other in wanted)

    distances = {sample: distance(sample) for sample in samples}
    best = min(samples, key=distances.__getitem__)
    return best, distances[best]


def _coarse(path: Path) -> list[int]:
    with Image.open(path) as image:
        return list(image.convert("RGB").resize((16, 16), Image.Resampling.BOX).tobytes())


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
