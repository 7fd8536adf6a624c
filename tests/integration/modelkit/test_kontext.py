"""FLUX Kontext edits, edits by other FLUX models, and masks, on tiny models of random weights."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from PIL import Image

from meshkit.worker.handlers import Need
from modelkit.card import read_card
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.kontext import KontextModel
from modelkit.masks import encoded
from modelkit.requests import BatchSettings, ImageRequest, Picture
from modelkit.residency import Models
from modelkit.upscale import Upscaler
from tests.integration.modelkit.conftest import CARD, build


class Watcher:
    def __init__(self, *, cancel_after: int | None = None) -> None:
        self.steps: list[tuple[int, int]] = []
        self._cancel_after = cancel_after

    def progress(self, step: int, total: int, preview: bytes | None = None) -> None:
        self.steps.append((step, total))

    def upscaling(self) -> None:
        pass

    def cancelled(self) -> bool:
        return self._cancel_after is not None and len(self.steps) >= self._cancel_after


@pytest.fixture(scope="session")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build(tmp_path_factory.mktemp("editor"), seed=3)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxKontextPipeline"}))
    card = {**CARD, "name": "editor", "architecture": "flux-kontext", "references": 2}
    (folder / "atelier.json").write_text(json.dumps(card))
    return folder


@pytest.fixture
def editors(tiny: Path, editor: Path) -> Iterator[Models]:
    models = Models(str(tiny), "cpu", 1 << 30, threads=1, extra_models=(str(editor),))
    yield models
    models.free()


@contextmanager
def lend(models: Models, model: str | None = None) -> Iterator[Any]:
    with models.lend([Need("model", "kontext", model, ("flux",)), Need("upscaler", "upscaler")]) as lent:
        yield lent["model"], lent["upscaler"]


def _picture(colour: str = "red", size: tuple[int, int] = (64, 64)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    image.paste(colour, (size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4))
    return image


def _request(seed: int = 1, prompt: str = "make it blue", **more: Any) -> ImageRequest:
    return ImageRequest(**{"prompt": prompt, "seed": seed, "observer": Watcher(), "reference": _picture(), **more})


def _edit(models: Models, requests: Sequence[ImageRequest], model: str | None = None, **settings: Any) -> list[Any]:
    with lend(models, model) as (chosen, upscaler):
        values = {"width": 64, "height": 64, "whole": True, **settings}
        return list(chosen.generate(BatchSettings(**values), requests, upscaler))


def _pixels(picture: Picture | None) -> Any:
    assert picture is not None
    return np.asarray(picture.image, np.int16)


def test_an_edit_is_the_pipelines_own(editors: Models, editor: Path) -> None:
    (made,) = _edit(editors, [_request()])
    pipe = FluxKontextPipeline.from_pretrained(str(editor), dtype=torch.float32, local_files_only=True)
    expected = pipe(
        prompt="make it blue",
        negative_prompt="",
        true_cfg_scale=2.0,
        guidance_scale=1.0,
        image=encoded(pipe, [_picture()], 64, 64),
        width=64,
        height=64,
        max_area=64 * 64,
        num_inference_steps=4,
        max_sequence_length=16,
        generator=torch.Generator().manual_seed(1),
        _auto_resize=False,
    ).images[0]
    assert np.abs(_pixels(made) - np.asarray(expected, np.int16)).max() <= 1


def test_the_picture_the_prompt_and_the_seed_each_shape_the_edit(editors: Models) -> None:
    requests = [
        _request(),
        _request(),
        _request(seed=2),
        _request(prompt="make it green"),
        _request(reference=_picture("black")),
    ]
    # Random weights hear the prompt faintly: guidance makes its share of the picture large enough to be seen.
    first, again, seed, prompt, picture = (_pixels(made) for made in _edit(editors, requests, guidance_scale=40.0))
    assert np.abs(first - again).max() <= 1
    for other in (seed, prompt, picture):
        assert np.abs(first - other).max() > 1


def test_references_shape_the_edit_and_their_number_is_bounded(editors: Models) -> None:
    one = _edit(editors, [_request(others=(_picture("blue"),))])[0]
    other = _edit(editors, [_request(others=(_picture("green", (30, 90)),))])[0]
    two = _edit(editors, [_request(others=(_picture("blue"), _picture("green")))])[0]
    # Calls of one picture are exact, so that any difference is the reference's.
    assert (_pixels(one) != _pixels(other)).any()
    assert (_pixels(one) != _pixels(two)).any()
    with pytest.raises(ModelError, match=r"editor takes at most 2 reference images") as failure:
        _edit(editors, [_request(others=(_picture(),) * 3)])
    assert failure.value.fault == ModelErrorKind.VALIDATION


def test_a_cancelled_member_ends_within_a_step_and_changes_no_other(editors: Models) -> None:
    alone = _edit(editors, [_request(seed=7)])[0]
    watcher = Watcher(cancel_after=2)
    gone, kept = _edit(editors, [_request(observer=watcher), _request(seed=7)])
    assert gone is None
    assert len(watcher.steps) == 2
    assert np.abs(_pixels(kept) - _pixels(alone)).max() <= 1


def test_strength_keeps_the_picture_by_degrees(editors: Models) -> None:
    base = np.asarray(_picture(), np.int16)
    with lend(editors) as (model, _):
        latents = encoded(model.pipe, [_picture()], 64, 64)
        config = model.pipe.vae.config
        with torch.inference_mode():
            back = model.pipe.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
        kept = ((back[0].clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
    watchers = [Watcher(), Watcher()]
    weak = _edit(editors, [_request(observer=watchers[0])], strength=0.75, steps=8)[0]
    strong = _edit(editors, [_request(observer=watchers[1])], strength=0.0, steps=8)[0]
    assert [len(watcher.steps) for watcher in watchers] == [2, 8]
    assert np.abs(_pixels(weak) - kept).mean() < np.abs(_pixels(strong) - kept).mean()
    assert (_pixels(_edit(editors, [_request()], strength=1.0)[0]) == base).all()


@pytest.mark.parametrize(("model", "strength"), [(None, 0.0), ("tiny", 0.25)])
def test_what_a_mask_keeps_stays_to_the_pixel(editors: Models, model: str | None, strength: float) -> None:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 16, 48, 48))
    made = _pixels(_edit(editors, [_request(mask=mask)], model, strength=strength)[0])
    base, inside = np.asarray(_picture(), np.int16), np.asarray(mask) > 0
    assert (made[~inside] == base[~inside]).all()
    assert np.abs(made[inside] - base[inside]).mean() > 1


def test_the_mask_also_holds_while_the_model_paints(editors: Models) -> None:
    nothing = Image.new("L", (64, 64), 0)
    nothing.paste(255, (0, 0, 8, 8))
    free, held = _edit(editors, [_request(), _request()])[0], None
    with lend(editors) as (model, upscaler):
        seen: list[torch.Tensor] = []
        original = model.pipe.vae.decode

        def decode(latents: torch.Tensor, *rest: Any, **more: Any) -> Any:
            seen.append(latents.clone())
            return original(latents, *rest, **more)

        model.pipe.vae.decode = decode
        try:
            held = model.generate(BatchSettings(64, 64, whole=True), [_request(mask=nothing)], upscaler)[0]
        finally:
            del model.pipe.vae.decode
        config = model.pipe.vae.config
        clean = encoded(model.pipe, [_picture()], 64, 64) / config.scaling_factor + config.shift_factor
    assert torch.allclose(seen[-1][:, :, 1:, 1:], clean[:, :, 1:, 1:], atol=1e-4)
    assert np.abs(_pixels(free) - _pixels(held)).max() > 1


def test_an_edit_of_another_aspect_loses_nothing_at_its_sides(editors: Models) -> None:
    base = Image.new("RGB", (90, 60), "white")
    (made,) = _edit(editors, [_request(reference=base)], width=90, height=60, strength=1.0)
    assert made.image.size == (90, 60)
    (drawn,) = _edit(editors, [_request(reference=base)], width=90, height=60)
    assert drawn.image.size == (90, 60)


def test_a_flux_model_is_taken_where_it_is_named_and_starts_from_the_picture(editors: Models) -> None:
    watcher = Watcher()
    (made,) = _edit(editors, [_request(observer=watcher)], "tiny", strength=0.5)
    assert len(watcher.steps) == 2
    assert made is not None
    with pytest.raises(ModelError, match="tiny takes no reference images"):
        _edit(editors, [_request(others=(_picture(),))], "tiny", strength=0.5)
    assert {model.family for model in editors.resident()} == {"flux", "upscaler"}


def test_an_edit_model_does_not_draw_from_a_prompt_alone(editors: Models) -> None:
    with pytest.raises(ModelError, match="editor edits pictures, and cannot draw one"):
        _edit(editors, [_request(reference=None)])
    with (
        pytest.raises(ModelError, match="of a kind that cannot do this task"),
        editors.lend([Need("model", "flux", "editor")]),
    ):
        pass


def test_parts_that_are_equal_are_in_memory_once(editors: Models, tiny: Path, editor: Path) -> None:
    with editors.lend([Need("a", "kontext", None, ()), Need("b", "flux")]) as lent:
        assert isinstance(lent["a"], KontextModel)
        for family, folder in (("a", editor), ("b", tiny)):
            held = sum(lent[family].holdings().values())
            assert held > 0.95 * sum(
                p.numel() * 4 for part in lent[family].components.values() for p in part.parameters()
            )
            assert folder.is_dir()


def test_a_folder_without_a_card_tells_by_its_pipeline_that_it_edits(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxKontextPipeline"}))
    card = read_card(tmp_path)
    assert (card.architecture, card.guidance.scale_default, card.guidance.embedded) == ("flux-kontext", 2.5, True)
    assert card.references == 16


def test_a_large_edit_is_enlarged_and_keeps_what_its_mask_keeps(editors: Models) -> None:
    base = _picture(size=(96, 96))
    mask = Image.new("L", (96, 96), 0)
    mask.paste(255, (24, 24, 72, 72))
    with lend(editors) as (model, upscaler):
        assert isinstance(upscaler, Upscaler)
        settings = BatchSettings(96, 96, whole=True)
        (made,) = model.generate(settings, [_request(reference=base, mask=mask)], upscaler)
    inside = np.asarray(mask) > 0
    assert made.image.size == (96, 96)
    assert (_pixels(made)[~inside] == np.asarray(base, np.int16)[~inside]).all()
