from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from modelkit.clips import Clip, ClipWriter
from models.garments.catalogue import GarmentFacts
from models.garments.draw import draw
from models.motions.film import Framing, Motion, film

Picture = NDArray[np.uint8]
GROUND = 230


def square(at: float, size: tuple[int, int] = (96, 64), side: int = 24) -> Picture:
    """A textured square that begins `at` pixels from the left."""
    rng = np.random.default_rng(3)
    texture = cv2.resize(rng.integers(20, 160, (6, 6)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    grey = np.full((size[1], size[0]), GROUND, np.float32)
    top = (size[1] - side) // 2
    moved = np.array([[1, 0, at], [0, 1, top]], np.float32)
    cover = cv2.warpAffine(np.ones((side, side), np.float32), moved, size)
    grey = grey * (1 - cover) + cv2.warpAffine(texture, moved, size) * cover
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def middle(frame: Picture) -> float:
    dark = np.flatnonzero((frame[..., 1] < GROUND - 40).sum(axis=0) > 4)
    return float(dark.mean())


def psnr(one: Picture, other: Picture) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(np.float64) - other) ** 2)))


@pytest.mark.parametrize("enlarged", [False, True])
def test_frames_in_between_lie_evenly_between_their_keyframes(enlarged: bool) -> None:
    keyframes = [square(20), square(28), square(36)]
    frames = list(Clip(keyframes, keyframes[0], enlarged=enlarged).frames(9))
    assert len(frames) == 9
    shifts = [middle(frame) - middle(frames[0]) for frame in frames]
    assert shifts == pytest.approx([0, 2, 4, 6, 8, 10, 12, 14, 16], abs=1.0)


@pytest.mark.parametrize("enlarged", [False, True])
def test_the_first_frame_is_the_still_picture_itself(enlarged: bool) -> None:
    still = np.asarray(cv2.resize(square(20), (192, 128), interpolation=cv2.INTER_CUBIC), np.uint8)
    frames = list(Clip([square(20), square(24)], still, enlarged=enlarged).frames(4))
    assert (frames[0] == still).all()
    assert {frame.shape for frame in frames} == {(128, 192, 3)}


@pytest.mark.parametrize("motion", ["sway", "turn", "pan left", "zoom in", "zoom out"])
def test_enlarged_frames_are_nearer_to_the_truth_than_enlarged_keyframes(
    motion: Motion, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = draw(GarmentFacts("dress", "red", "stripes", "white", "white"), np.random.default_rng(4), 512)
    keyframes = film(drawing, motion, Framing(0.8, 0, 0))
    monkeypatch.setattr("models.motions.film.SIZE", 256)
    truth = film(drawing, motion, Framing(0.8, 0, 0))
    frames = list(Clip(list(keyframes), truth[0], enlarged=True).frames(9))[::2]
    gained = [
        psnr(frame, true) - psnr(np.asarray(cv2.resize(key, (256, 256), interpolation=cv2.INTER_CUBIC), np.uint8), true)
        for frame, true, key in zip(frames[1:], truth[1:], keyframes[1:], strict=True)
    ]
    assert np.mean(gained) > 1.0


def test_noise_of_the_keyframes_does_not_flicker_in_an_enlarged_clip() -> None:
    rng = np.random.default_rng(0)
    clean = square(30)
    noisy = [np.clip(clean + rng.normal(0, 4, clean.shape), 0, 255).astype(np.uint8) for _ in range(4)]
    still = np.asarray(cv2.resize(clean, (192, 128), interpolation=cv2.INTER_CUBIC), np.uint8)

    def flicker(enlarged: bool) -> float:
        frames = np.stack(list(Clip(noisy, still, enlarged=enlarged).frames(13))[1:]).astype(np.float32)
        return float(np.abs(np.diff(frames, axis=0)).mean())

    assert flicker(True) < 0.5 * flicker(False)


def test_one_keyframe_is_no_clip() -> None:
    with pytest.raises(ValueError, match="two keyframes"):
        Clip([square(1)], square(1), enlarged=False)


def test_a_file_holds_the_frames_as_a_browser_plays_them(tmp_path: Path) -> None:
    frames = [square(10 + 2 * index) for index in range(12)]
    writer = ClipWriter(tmp_path / "clip.mp4", (96, 64), 12)
    for frame in frames:
        writer.add(frame)
    writer.close()
    data = (tmp_path / "clip.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        facts = (stream.codec_context.name, str(stream.codec_context.pix_fmt), float(stream.average_rate or 0))
        assert facts == ("h264", "yuv420p", 12.0)
        assert (stream.codec_context.width, stream.codec_context.height) == (96, 64)
        decoded = [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(stream)]
    assert len(decoded) == 12
    assert min(psnr(one, other) for one, other in zip(decoded, frames, strict=True)) > 35


def test_the_same_frames_make_the_same_file(tmp_path: Path) -> None:
    made = []
    for name in ("one.mp4", "other.mp4"):
        writer = ClipWriter(tmp_path / name, (96, 64), 12)
        for index in range(5):
            writer.add(square(10 + index))
        writer.close()
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]
