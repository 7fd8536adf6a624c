"""The family of video models, on LTX and Wan pipelines of a few thousand random weights."""

import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    LTXImageToVideoPipeline,
    LTXVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel, T5TokenizerFast, UMT5Config, UMT5EncoderModel

from meshkit.worker.handlers import Need
from modelkit.card import ModelCard, VideoLimits, read_card
from modelkit.device import Device
from modelkit.errors import ModelError
from modelkit.family import Source
from modelkit.residency import Models
from modelkit.video import ClipRequest, VideoFamily, VideoModel, placed

CPU = Device("cpu", 1)
CARD: dict[str, Any] = {
    "native_size": 64,
    "max_size": 64,
    "size_multiple": 32,
    "max_sequence_length": 16,
    "steps": {"default": 2, "min": 1, "max": 20},
    "guidance": {"embedded": False, "scale_default": 3.0},
}
VIDEO = {"min_frames": 5, "max_frames": 9, "frame_multiple": 4, "frame_rate": 8}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _tokenizer() -> Any:
    letters = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    letters += [(letter, -2.0) for letter in string.ascii_lowercase + string.digits]
    return T5TokenizerFast(vocab=letters, extra_ids=0, model_max_length=512)


def build_ltx(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    LTXImageToVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8),
            down_block_types=("LTXVideoDownBlock3D",) * 3,
            decoder_block_out_channels=(8, 8, 8),
            layers_per_block=(1,) * 4,
            decoder_layers_per_block=(1,) * 4,
            spatio_temporal_scaling=(True, True, False),
            decoder_spatio_temporal_scaling=(True, True, False),
            decoder_inject_noise=(False,) * 4,
            upsample_residual=(False,) * 3,
            upsample_factor=(1,) * 3,
            patch_size=4,
        ),
        text_encoder=T5EncoderModel(
            T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ),
        tokenizer=tokenizer,
        transformer=LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=1,
            caption_channels=16,
        ),
    ).save_pretrained(folder, safe_serialization=True)
    (folder / "atelier.json").write_text(
        json.dumps({**CARD, "name": "tiny-ltx", "architecture": "ltx", "video": VIDEO})
    )
    return folder


def build_wan(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    WanImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(
            UMT5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ),
        vae=AutoencoderKLWan(
            base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        ),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=36,
            out_channels=16,
            text_dim=16,
            freq_dim=32,
            ffn_dim=32,
            num_layers=1,
            rope_max_seq_len=32,
        ),
    ).save_pretrained(folder, safe_serialization=True)
    (folder / "atelier.json").write_text(
        json.dumps({**CARD, "name": "tiny-wan", "architecture": "wan", "video": VIDEO})
    )
    return folder


class Watcher:
    def __init__(self, cancel_at: int | None = None) -> None:
        self.steps: list[tuple[int, int]] = []
        self._cancel_at = cancel_at

    def progress(self, step: int, total: int, preview: bytes | None = None) -> None:
        self.steps.append((step, total))

    def upscaling(self) -> None:
        pass

    def cancelled(self) -> bool:
        return self._cancel_at is not None and len(self.steps) >= self._cancel_at


def request(watcher: Watcher | None = None, *, height: int = 64, width: int = 64, **fields: Any) -> ClipRequest:
    ramp = np.linspace(0, 255, width, dtype=np.uint8)
    still = np.broadcast_to(ramp[None, :, None], (height, width, 3)).copy()
    values = {"prompt": "it turns", "still": still, "seconds": 1.0, "seed": 7, **fields}
    return ClipRequest(observer=watcher or Watcher(), **values)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    at = tmp_path_factory.mktemp("video")
    return {"ltx": build_ltx(at / "ltx"), "wan": build_wan(at / "wan")}


@pytest.fixture(scope="module")
def ltx(folders: dict[str, Path]) -> VideoModel:
    return VideoFamily().load(Source(read_card(folders["ltx"]), folders["ltx"]), CPU)


@pytest.mark.parametrize("architecture", ["ltx", "wan"])
def test_a_model_of_either_kind_draws_keyframes(folders: dict[str, Path], architecture: str) -> None:
    family = VideoFamily()
    source = Source(read_card(folders[architecture]), folders[architecture])
    assert family.matches(source.card)
    model = family.load(source, CPU)
    held = sum(model.holdings().values())
    assert held == pytest.approx(family.size(source, CPU), rel=0.02)
    watcher = Watcher()
    drawn = model.keyframes(request(watcher))
    assert drawn is not None
    assert [frame.shape for frame in drawn.frames] == [(64, 64, 3)] * 9
    assert not drawn.enlarge
    assert watcher.steps == [(1, 2), (2, 2)]
    again = model.keyframes(request())
    assert again is not None
    assert all((a == b).all() for a, b in zip(drawn.frames, again.frames, strict=True))
    model.close()
    assert not model.holdings()


def test_a_larger_clip_keeps_its_aspect_on_the_models_canvas(ltx: VideoModel) -> None:
    drawn = ltx.keyframes(request(height=90, width=120))
    assert drawn is not None
    assert drawn.enlarge
    height, width = drawn.frames[0].shape[:2]
    assert width / height == pytest.approx(120 / 90, rel=0.05)


def test_a_cancelled_clip_ends_within_a_step(ltx: VideoModel) -> None:
    watcher = Watcher(cancel_at=1)
    assert ltx.keyframes(request(watcher, steps=10)) is None
    assert watcher.steps == [(1, 10)]
    watcher = Watcher(cancel_at=0)
    assert ltx.keyframes(request(watcher, steps=10)) is None
    assert watcher.steps == []
    assert ltx.keyframes(request()) is not None


def test_steps_beyond_the_cards_are_refused(ltx: VideoModel) -> None:
    with pytest.raises(ModelError, match="1 to 20 steps, not 21"):
        ltx.keyframes(request(steps=21))


def test_the_seed_the_prompt_and_the_guidance_shape_the_clip(ltx: VideoModel) -> None:
    def drawn(**fields: Any) -> Any:
        made = ltx.keyframes(request(**fields))
        assert made is not None
        return np.stack(made.frames)

    plain = drawn()
    assert (drawn(seed=8) != plain).any()
    assert (drawn(prompt="a dog") != plain).any()
    assert (drawn(guidance=2.0) != plain).any()
    assert (drawn(negative_prompt="a dog") != plain).any()
    assert (drawn(guidance=0.0) == drawn(guidance=0.0, negative_prompt="a dog")).all()


def test_a_prompt_beyond_the_model_says_how_much_was_cut(ltx: VideoModel) -> None:
    drawn = ltx.keyframes(request(prompt="abcdefghij" * 3))
    assert drawn is not None
    assert drawn.cut_tokens == 32 - 16


def test_the_family_shares_the_budget(folders: dict[str, Path]) -> None:
    models = Models(str(folders["ltx"]), "cpu", 1 << 30, extra_models=(str(folders["wan"]),), families=("video",))
    with models.lend([Need("model", "video")]) as lent:
        assert lent["model"].card.name == "tiny-ltx"
    with models.lend([Need("model", "video", "tiny-wan")]) as lent:
        assert lent["model"].card.name == "tiny-wan"
    assert {one.name for one in models.resident()} == {"tiny-ltx", "tiny-wan"}
    models.free()
    with pytest.raises(ModelError, match="not served here"), models.lend([Need("model", "video", "other")]):
        pass


def test_a_folder_that_does_not_load_is_the_operators_fault(folders: dict[str, Path], tmp_path: Path) -> None:
    index = json.loads((folders["ltx"] / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="could not be loaded"):
        VideoFamily().load(Source(ModelCard(name="broken", architecture="ltx"), tmp_path), CPU)


@pytest.mark.parametrize(
    ("kind", "architecture", "frames"), [("LTXPipeline", "ltx", 161), ("WanImageToVideoPipeline", "wan", 81)]
)
def test_a_folder_without_a_card_is_known_by_its_pipeline(
    tmp_path: Path, kind: str, architecture: str, frames: int
) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    card = read_card(tmp_path)
    assert (card.architecture, card.video.max_frames) == (architecture, frames)
    assert VideoFamily().matches(card)


@pytest.mark.parametrize(("seconds", "frames"), [(0.1, 9), (1, 25), (5, 121), (5.1, 129), (60, 161)])
def test_frames_are_as_many_as_the_clip_has_within_the_models_range(seconds: float, frames: int) -> None:
    limits = VideoLimits(min_frames=9, max_frames=161, frame_multiple=8, frame_rate=24)
    assert limits.frames_of(seconds) == frames


def test_a_picture_lies_whole_on_its_canvas() -> None:
    picture = np.zeros((30, 60, 3), np.uint8)
    picture[0], picture[-1] = 100, 200
    canvas, (left, top, right, bottom) = placed(picture, 64, 64)
    assert canvas.shape == (64, 64, 3)
    assert (left, right, bottom - top) == (0, 64, 32)
    assert (canvas[0] == canvas[top]).all()
    assert (canvas[-1] == canvas[bottom - 1]).all()
