"""Bare diffusers pipelines, loaded as the worker loads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from modelkit.device import Device


def load(folder: Path, device: str) -> Any:
    """Load a FLUX pipeline onto a device, in the type of numbers that the worker takes there."""
    import diffusers  # noqa: PLC0415 -- seconds, which a fork server spends once
    import transformers  # noqa: PLC0415 -- heavy; only in this part's process

    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()
    if device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    pipeline = diffusers.FluxPipeline.from_pretrained(folder, dtype=Device(device).dtype, local_files_only=True)
    pipeline = pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
