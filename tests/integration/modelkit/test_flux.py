"""What the resident FLUX model promises, on a tiny one of random weights."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from meshkit.worker.handlers import Need
from modelkit.errors import ModelError
from modelkit.flux import FluxModel
from modelkit.previews import Projection
from modelkit.requests import AdapterFile, BatchSettings, ImageRequest
from modelkit.residency import Models
from tests.integration.modelkit.conftest import lend_flux


class Observer:
    def __init__(self, cancel_after: int | None = None) -> None:
        self.cancel_after = cancel_after
        self.steps: list[tuple[int, int]] = []
        self.previews: list[bytes] = []

    def progress(self, step: int, total: int, preview: bytes | None = None) -> None:
        self.steps.append((step, total))
        if preview:
            self.previews.append(preview)

    def upscaling(self) -> None:
        pass

    def cancelled(self) -> bool:
        return self.cancel_after is not None and len(self.steps) >= self.cancel_after


NATIVE = BatchSettings(64, 64)
REFERENCE = Image.effect_noise((80, 100), 60).convert("RGB")


def request(prompt: str = "a red dress", seed: int = 1, observer: Observer | None = None, **more: Any) -> ImageRequest:
    return ImageRequest(prompt, seed, observer or Observer(), **more)


def make(models: Models, settings: BatchSettings, requests: Sequence[ImageRequest]) -> list[Any]:
    with models.lend([Need("model", "flux"), Need("upscaler", "upscaler")]) as lent:
        pictures = lent["model"].generate(settings, requests, lent["upscaler"])
    return [None if picture is None else np.asarray(picture.image).astype(int) for picture in pictures]


def test_same_seed_gives_the_same_picture_and_another_seed_another(models: Models) -> None:
    (first,), (again,), (other,) = (make(models, NATIVE, [request(seed=seed)]) for seed in (1, 1, 2))
    assert (first == again).all()
    assert np.abs(first - other).mean() > 1


def test_a_picture_does_not_depend_on_its_batch(models: Models) -> None:
    (alone,) = make(models, NATIVE, [request()])
    batch = make(models, NATIVE, [request("a blue hat", 7), request(), request("boots", 9)])
    assert np.abs(batch[1] - alone).max() <= 2
    assert np.abs(batch[0] - alone).mean() > 1


def test_prompt_negative_prompt_steps_and_guidance_matter(models: Models) -> None:
    (base,) = make(models, NATIVE, [request()])
    for settings, changed in (
        (NATIVE, request("something else")),
        (NATIVE, request(negative_prompt="blur")),
        (replace(NATIVE, steps=9), request()),
        (replace(NATIVE, guidance_scale=9.0), request()),
    ):
        (other,) = make(models, settings, [changed])
        assert (other != base).any()


def test_a_picture_is_the_one_that_diffusers_own_call_makes(models: Models) -> None:
    for negative in ("", "blur", "blur"):
        (made,) = make(models, replace(NATIVE, guidance_scale=3.0), [request(negative_prompt=negative)])
        with lend_flux(models) as model:
            own = model.pipe(
                prompt="a red dress",
                negative_prompt=negative,
                true_cfg_scale=3.0,
                width=64,
                height=64,
                num_inference_steps=model.card.steps.default,
                max_sequence_length=model.card.max_sequence_length,
                generator=torch.Generator().manual_seed(1),
            )
        assert np.abs(np.asarray(own.images[0]).astype(int) - made).max() <= 2


def test_a_negative_prompt_is_encoded_once(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[Any] = []
    with lend_flux(models) as model:
        encode = model.pipe.encode_prompt

        def counted(**keywords: Any) -> Any:
            if keywords.get("prompt_embeds") is None:
                encoded.extend(keywords["prompt"])
            return encode(**keywords)

        monkeypatch.setattr(model.pipe, "encode_prompt", counted)
    for _ in range(2):
        make(models, replace(NATIVE, guidance_scale=3.0), [request("boots", negative_prompt="rust")])
        make(models, replace(NATIVE, guidance_scale=3.0), [request("hats", negative_prompt="rain")])
    assert sorted(encoded) == ["boots", "boots", "hats", "hats", "rain", "rust"]


def test_positions_are_embedded_once_a_picture_and_anew_where_they_differ(models: Models) -> None:
    embedded: list[tuple[int, ...]] = []
    with lend_flux(models) as model:
        kept = model.pipe.transformer.pos_embed
        hook = kept._embed.register_forward_hook(lambda _module, given, _made: embedded.append(tuple(given[0].shape)))
    try:
        (first,) = make(models, NATIVE, [request()])
        make(models, BatchSettings(32, 64), [request()])
        (again,) = make(models, NATIVE, [request()])
    finally:
        hook.remove()
    assert (first == again).all()
    assert len(embedded) in {2, 3}, "the first may find those of a picture before it"
    assert len(set(embedded)) == 2


def test_a_batch_may_mix_negative_prompts(models: Models) -> None:
    settings = replace(NATIVE, guidance_scale=3.0)
    (alone,) = make(models, settings, [request(negative_prompt="blur")])
    batch = make(models, settings, [request(negative_prompt="noise"), request(negative_prompt="blur")])
    assert np.abs(batch[1] - alone).max() <= 2
    assert (batch[0] != batch[1]).any()


def test_steps_outside_the_cards_range_are_refused(models: Models) -> None:
    with pytest.raises(ModelError, match="1 to 20 steps"):
        make(models, replace(NATIVE, steps=21), [request()])


def test_progress_counts_every_step(models: Models) -> None:
    observer = Observer()
    make(models, NATIVE, [request(observer=observer)])
    assert observer.steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_strength_0_ignores_the_reference_and_100_keeps_it(models: Models) -> None:
    (free,) = make(models, NATIVE, [request()])
    (ignored,) = make(models, NATIVE, [request(reference=REFERENCE)])
    (kept,) = make(models, replace(NATIVE, strength=1.0), [request(reference=REFERENCE)])
    assert (ignored == free).all()
    resized = np.asarray(REFERENCE.resize((64, 64), Image.Resampling.LANCZOS, box=(0, 10, 80, 90), reducing_gap=3.0))
    assert (kept == resized).all()


def test_strength_between_the_ends_takes_its_share_of_the_steps(models: Models) -> None:
    (free,) = make(models, NATIVE, [request()])
    for strength, steps in ((0.25, 3), (0.5, 2), (0.99, 1)):
        observer = Observer()
        (made,) = make(models, replace(NATIVE, strength=strength), [request(reference=REFERENCE, observer=observer)])
        assert observer.steps[-1] == (steps, steps)
        assert (made != free).any()


@pytest.mark.parametrize(("width", "height"), [(64, 64), (40, 40), (50, 90), (128, 128), (200, 100), (333, 77)])
def test_a_picture_has_exactly_the_size_asked_for(models: Models, width: int, height: int) -> None:
    (made,) = make(models, BatchSettings(width, height, steps=1), [request()])
    assert made.shape == (height, width, 3)


def test_cancel_ends_within_a_step(models: Models) -> None:
    observer = Observer(cancel_after=2)
    assert make(models, replace(NATIVE, steps=20), [request(observer=observer)]) == [None]
    assert len(observer.steps) == 2


def test_a_request_cancelled_before_it_starts_makes_no_step(models: Models) -> None:
    observer = Observer(cancel_after=0)
    assert make(models, NATIVE, [request(observer=observer)]) == [None]
    assert observer.steps == []


@pytest.mark.parametrize("reference", [None, REFERENCE])
def test_the_rest_of_a_batch_goes_on_without_a_cancelled_member(models: Models, reference: Image.Image | None) -> None:
    settings = replace(NATIVE, steps=8, strength=0.25)
    (alone,) = make(models, settings, [request(reference=reference)])
    gone, stays = Observer(cancel_after=3), Observer()
    made = make(
        models, settings, [request("x", 5, gone, reference=reference), request(observer=stays, reference=reference)]
    )
    assert made[0] is None
    assert len(gone.steps) == 3
    assert [step for step, _ in stays.steps] == list(range(1, len(stays.steps) + 1))
    assert np.abs(made[1] - alone).max() <= 2


def test_cancel_between_tiles_ends_the_upscaling(models: Models) -> None:
    observer = Observer(cancel_after=5)
    assert make(models, BatchSettings(256, 256), [request(observer=observer)]) == [None]
    assert len(observer.steps) == 5


def test_previews_are_small_jpegs_of_every_member(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelkit.previews._INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr("modelkit.previews._TIME_SHARE", 1.0)
    observers = [Observer(), Observer()]
    make(models, NATIVE, [request(observer=observers[0]), request("hat", 2, observers[1])])
    for observer in observers:
        assert len(observer.previews) == 2  # none after the first step, whose direction is unknown, nor after the last
        assert all(preview[:2] == b"\xff\xd8" and len(preview) <= 16384 for preview in observer.previews)


def test_a_projection_fitted_to_a_large_decoder_shows_colours(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelkit.previews._SMALL_DECODER", 0)
    with lend_flux(models) as model:
        latents = torch.zeros(2, 4, 8, 8)
        images = Projection(model.pipe.vae).images(latents)
    assert [image.size for image in images] == [(8, 8), (8, 8)]


def test_tokens_beyond_the_cards_length_are_counted(models: Models) -> None:
    with lend_flux(models) as model:
        assert model.cut_tokens("ab") == 0
        assert model.cut_tokens("a" * 40) > 20


class TestAdapters:
    def test_two_at_once_act_by_their_weights(self, models: Models, make_lora: Any) -> None:
        a, b = make_lora("a", 1), make_lora("b", 2, layer="attn.to_v")
        pictures = {
            weights: make(
                models,
                replace(NATIVE, adapters=(AdapterFile(a, weights[0], "a"), AdapterFile(b, weights[1], "b"))),
                [request()],
            )[0]
            for weights in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.5, 1.0), (0.0, 0.0))
        }
        (base,) = make(models, NATIVE, [request()])
        assert (pictures[0.0, 0.0] == base).all()
        distinct = [pictures[key] for key in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.5, 1.0))]
        for index, picture in enumerate(distinct):
            assert (picture != base).any()
            assert all((picture != other).any() for other in distinct[index + 1 :])

    def test_the_base_is_unchanged_by_what_came_and_went(self, models: Models, make_lora: Any) -> None:
        (before,) = make(models, NATIVE, [request()])
        adapters = (AdapterFile(make_lora(), 1.0, "styles/a.safetensors"),)
        (adapted,) = make(models, replace(NATIVE, adapters=adapters), [request()])
        (after,) = make(models, NATIVE, [request()])
        assert (adapted != before).any()
        assert (after == before).all()
        assert models.resident()[-1].loras == ("styles/a.safetensors",)
        with lend_flux(models) as model:
            model.adapters.clear()
        (cleared,) = make(models, NATIVE, [request()])
        assert (cleared == before).all()
        assert models.resident()[-1].loras == ()

    def test_swapping_back_gives_the_same_picture_without_loading(self, models: Models, make_lora: Any) -> None:
        a, b = ((AdapterFile(make_lora(name, seed), 1.0, name),) for name, seed in (("a", 1), ("b", 2)))
        (first,) = make(models, replace(NATIVE, adapters=a), [request()])
        make(models, replace(NATIVE, adapters=b), [request()])
        with lend_flux(models) as model:
            loaded = dict(model.adapters._loaded)
        (again,) = make(models, replace(NATIVE, adapters=a), [request()])
        assert (first == again).all()
        with lend_flux(models) as model:
            assert dict(model.adapters._loaded) == loaded

    def test_the_least_recently_used_make_room(self, models: Models, make_lora: Any) -> None:
        with lend_flux(models) as model:
            model.adapters._max_loaded = 2
            for seed in (1, 2, 3):
                model.adapters.use([AdapterFile(make_lora(str(seed), seed), 1.0, str(seed))])
            assert model.adapters.labels == ("2", "3")

    def test_one_file_in_two_slots_acts_with_the_sum(self, models: Models, make_lora: Any) -> None:
        file = make_lora()
        (twice,) = make(
            models, replace(NATIVE, adapters=(AdapterFile(file, 0.5), AdapterFile(file, 0.25))), [request()]
        )
        (once,) = make(models, replace(NATIVE, adapters=(AdapterFile(file, 0.75),)), [request()])
        assert (twice == once).all()

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [({"width": 48}, "has 48 inputs, this model's has 32"), ({"layer": "attn.to_w"}, "has no layer")],
    )
    def test_a_lora_of_another_model_is_refused_and_leaves_no_trace(
        self, models: Models, make_lora: Any, arguments: dict[str, Any], reason: str
    ) -> None:
        (before,) = make(models, NATIVE, [request()])
        with pytest.raises(ModelError, match=reason):
            make(models, replace(NATIVE, adapters=(AdapterFile(make_lora(**arguments), 1.0),)), [request()])
        (after,) = make(models, NATIVE, [request()])
        assert (after == before).all()
        assert models.resident()[-1].loras == ()

    @pytest.mark.parametrize(
        ("name", "shape", "reason"),
        [
            ("dora_scale", (1, 32), "is a DoRA"),
            ("lora_magnitude_vector", (32,), "is a DoRA"),
            ("hada_w1_a", (4, 4), "is a LoHa"),
            ("lokr_w1", (4, 4), "is a LoKr"),
            ("oft_blocks", (4, 4, 4), "is an OFT"),
            ("diff", (32, 32), "difference of whole layers"),
            ("lora_B.bias", (32,), "more than low-rank layers"),
            ("mystery", (32,), r"more than low-rank layers \(transformer.transformer_blocks.0.attn.to_q.mystery\)"),
        ],
    )
    def test_what_is_no_plain_lora_is_refused_by_name_and_never_drawn_without_it(
        self, models: Models, make_lora: Any, tmp_path: Any, name: str, shape: tuple[int, ...], reason: str
    ) -> None:
        mixed = tmp_path / "mixed.safetensors"
        key = f"transformer.transformer_blocks.0.attn.to_q.{name}"
        save_file({**load_file(make_lora()), key: torch.full(shape, 3.0)}, mixed)
        with pytest.raises(ModelError, match=reason):
            make(models, replace(NATIVE, adapters=(AdapterFile(mixed, 1.0),)), [request()])
        assert models.resident()[-1].loras == ()

    @pytest.mark.parametrize(
        ("add", "drop", "reason"),
        [
            ("lora_te2_encoder_block_0.lora_{}.weight", "", "text encoder that is not adapted"),
            ("", "lora_B.weight", "lacks half of its layer"),
            ("transformer.transformer_blocks.0.attn.to_v.alpha", "", "scales a layer that it does not hold"),
        ],
    )
    def test_a_file_of_which_a_part_would_be_left_out_is_refused(
        self, models: Models, make_lora: Any, tmp_path: Any, add: str, drop: str, reason: str
    ) -> None:
        tensors = {key: tensor for key, tensor in load_file(make_lora()).items() if not drop or drop not in key}
        tensors |= {add.format(part): torch.ones(4, 4) for part in ("down", "up") if "{}" in add}
        tensors |= {add: torch.tensor(2.0)} if add and "{}" not in add else {}
        partial = tmp_path / "partial.safetensors"
        save_file(tensors, partial)
        with pytest.raises(ModelError, match=reason):
            make(models, replace(NATIVE, adapters=(AdapterFile(partial, 1.0),)), [request()])

    def test_layers_that_the_library_leaves_out_are_counted(
        self, models: Models, make_lora: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As its conversions do with names that they do not know.
        with lend_flux(models) as model:
            given = type(model.pipe).lora_state_dict

            def forgetful(state: dict[str, Any], **options: Any) -> Any:
                return given({key: state[key] for key in state if "to_v" not in key}, **options)

            monkeypatch.setattr(model.pipe, "lora_state_dict", forgetful, raising=False)
            both = make_lora("both")
            save_file(load_file(both) | load_file(make_lora("v", 2, layer="attn.to_v")), both)
            with pytest.raises(ModelError, match="has 2 layers for this model, and 1 of them"):
                model.adapters.use([AdapterFile(both, 1.0)])

    @pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
    def test_weights_of_eight_bits_are_drawn_as_what_they_hold(
        self, models: Models, make_lora: Any, tmp_path: Any, kind: torch.dtype
    ) -> None:
        small, wide = tmp_path / "small.safetensors", tmp_path / "wide.safetensors"
        tensors = {key: tensor.to(kind) for key, tensor in load_file(make_lora()).items()}
        save_file(tensors, small)
        save_file({key: tensor.float() for key, tensor in tensors.items()}, wide)
        (base,) = make(models, NATIVE, [request()])
        (eight,) = make(models, replace(NATIVE, adapters=(AdapterFile(small, 1.0),)), [request()])
        (same,) = make(models, replace(NATIVE, adapters=(AdapterFile(wide, 1.0),)), [request()])
        assert (eight == same).all()
        assert (eight != base).any()

    def test_what_a_tool_wrote_as_zeros_changes_nothing(self, models: Models, make_lora: Any, tmp_path: Any) -> None:
        plain, padded = make_lora(), tmp_path / "padded.safetensors"
        extra = {"transformer.transformer_blocks.0.norm1.linear.diff": torch.zeros(4, 4)}
        save_file(load_file(plain) | extra, padded)
        (one,) = make(models, replace(NATIVE, adapters=(AdapterFile(plain, 1.0),)), [request()])
        (other,) = make(models, replace(NATIVE, adapters=(AdapterFile(padded, 1.0),)), [request()])
        assert (one == other).all()

    def test_a_good_lora_beside_a_bad_one_does_not_stay_active(self, models: Models, make_lora: Any) -> None:
        (before,) = make(models, NATIVE, [request()])
        both = (AdapterFile(make_lora("a"), 1.0, "a"), AdapterFile(make_lora("b", width=48), 1.0, "b"))
        with pytest.raises(ModelError):
            make(models, replace(NATIVE, adapters=both), [request()])
        (after,) = make(models, NATIVE, [request()])
        assert (after == before).all()

    def test_the_scale_in_a_files_notes_counts(self, models: Models, make_lora: Any, tmp_path: Any) -> None:
        plain = make_lora()
        noted = tmp_path / "noted.safetensors"
        save_file(
            load_file(plain),
            noted,
            {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 2})},
        )
        (half,) = make(models, replace(NATIVE, adapters=(AdapterFile(plain, 0.5),)), [request()])
        (scaled,) = make(models, replace(NATIVE, adapters=(AdapterFile(noted, 1.0),)), [request()])
        assert np.abs(half - scaled).max() <= 2


def test_a_closed_model_holds_nothing(tiny: Any) -> None:
    own = Models(str(tiny), "cpu", 1 << 30)
    with lend_flux(own) as model:
        held: FluxModel = model
    own.free()
    assert held.pipe is None
    assert own.resident() == []
