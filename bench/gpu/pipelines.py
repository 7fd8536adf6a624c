"""Bare diffusers pipelines, loaded as the worker loads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def load(folder: Path, device: str) -> Any:
    """Load a FLUX pipeline: float32 on a CPU, bfloat16 elsewhere."""
    import diffusers  # noqa: PLC0415 -- seconds, which who asks for a type of number alone does not need
    import transformers  # noqa: PLC0415

    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()
    if device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    pipeline = diffusers.FluxPipeline.from_pretrained(folder, dtype=dtype_of(device), local_files_only=True)
    pipeline = pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def dtype_of(device: str) -> torch.dtype:
    """Return the type of numbers that models run in on a device."""
    return torch.float32 if device == "cpu" else torch.bfloat16
