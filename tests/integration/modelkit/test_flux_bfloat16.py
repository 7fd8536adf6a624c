"""The FLUX model in bfloat16, as it runs on a GPU, here on a processor."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.gpu.setting import SHIPPED
from bench.gpu.shipped import LEAST_PSNR, psnr
from meshkit.worker.handlers import Need
from modelkit.device import Device
from modelkit.requests import AdapterFile, BatchSettings, ImageRequest
from modelkit.residency import Models

SIZE = BatchSettings(64, 64)


class Watcher:
    def __init__(self) -> None:
        self.previews: list[bytes] = []

    def progress(self, step: int, total: int, preview: bytes | None = None) -> None:
        if preview:
            self.previews.append(preview)

    def upscaling(self) -> None:
        pass

    def cancelled(self) -> bool:
        return False


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "dtype", property(lambda _: torch.bfloat16))


def load(folder: Path) -> Models:
    return Models(str(folder), "cpu", 1 << 30, threads=1)


def make(models: Models, *requests: ImageRequest, settings: BatchSettings = SIZE) -> list[Image.Image]:
    with models.lend([Need("model", "flux"), Need("upscaler", "upscaler")]) as lent:
        pictures = lent["model"].generate(settings, requests, lent["upscaler"])
    return [picture.image for picture in pictures]


@pytest.mark.usefixtures("bfloat16")
def test_every_network_keeps_the_devices_type_of_numbers(tiny: Path) -> None:
    models = load(tiny)
    with models.lend([Need("model", "flux")]) as lent:
        types = {part.dtype for part in lent["model"].components.values()}
    assert types == {torch.bfloat16}


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("small_decoder", [0, 20_000_000])
def test_references_adapters_previews_and_negative_prompts_run_in_it(
    tiny: Path, make_lora: Any, monkeypatch: pytest.MonkeyPatch, small_decoder: int
) -> None:
    monkeypatch.setattr("modelkit.previews._INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr("modelkit.previews._TIME_SHARE", 1.0)
    monkeypatch.setattr("modelkit.previews._SMALL_DECODER", small_decoder)
    models, watcher = load(tiny), Watcher()
    (plain,) = make(models, ImageRequest("a hat", 1, watcher))
    (negated,) = make(models, ImageRequest("a hat", 1, Watcher(), negative_prompt="red boots"))
    adapted = BatchSettings(64, 64, adapters=(AdapterFile(make_lora(), 1.0),))
    (with_lora,) = make(models, ImageRequest("a hat", 1, Watcher()), settings=adapted)
    reference = Image.effect_noise((64, 64), 60).convert("RGB")
    request = ImageRequest("a hat", 1, Watcher(), reference=reference)
    (from_reference,) = make(models, request, settings=BatchSettings(64, 64, strength=0.5))
    assert watcher.previews
    for other in (negated, with_lora, from_reference):
        assert np.abs(np.asarray(other, np.int16) - np.asarray(plain, np.int16)).mean() > 0.2
    assert make(models, ImageRequest("a hat", 1, Watcher()))[0].tobytes() == plain.tobytes()


def test_the_shipped_models_pictures_equal_those_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the GPU check asks of a GPU, asked of the rounding alone."""
    requests = [ImageRequest(prompt, seed, Watcher()) for seed, prompt in enumerate(("a red dress", "a blue bag"))]
    exact = make(load(SHIPPED), *requests)
    monkeypatch.setattr(Device, "dtype", property(lambda _: torch.bfloat16))
    rounded = make(load(SHIPPED), *requests)
    ratios = [psnr(*pair) for pair in zip(exact, rounded, strict=True)]
    assert all(LEAST_PSNR <= ratio < 90 for ratio in ratios), ratios
