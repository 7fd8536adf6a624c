from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from meshkit.worker.handlers import Need
from modelkit.card import ModelCard
from modelkit.device import Device
from modelkit.errors import ModelError
from modelkit.family import Family, Source
from modelkit.likeness import LikenessFamily, LikenessNetwork
from modelkit.served import ServedModels

ALEXNET = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
VGG = dict(
    zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        ((64, 3), (64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (256, 256), (512, 256)) + ((512, 512),) * 5,
        strict=True,
    )
)
LOTS = np.random.default_rng(0)
PICTURE = LOTS.integers(0, 256, (70, 90, 3), np.uint8)


def layers(shapes: Mapping[int, tuple[int, ...]], form: str) -> dict[str, Tensor]:
    lots = torch.Generator().manual_seed(0)
    state = {}
    for layer, (out, into, *given) in shapes.items():
        side = given[0] if given else 3
        fan = into * side**2
        state[form.format(layer=layer) + ".weight"] = (
            torch.randn((out, into, side, side), generator=lots) * (2 / fan) ** 0.5
        )
        state[form.format(layer=layer) + ".bias"] = torch.zeros(out)
    return state


def lpips_state(form: str = "features.{layer}") -> dict[str, Tensor]:
    linear = {f"lin{index}.model.1.weight": torch.full((1, out, 1, 1), 1 / out) for index, (out, *_) in
              enumerate(ALEXNET.values())}  # fmt: skip
    return {**layers(ALEXNET, form), **linear}


def dists_state() -> dict[str, Tensor]:
    channels = 3 + 64 + 128 + 256 + 512 + 512
    weights = {name: torch.full((1, channels, 1, 1), 0.1) for name in ("alpha", "beta")}
    return {**layers(VGG, "stage1.{layer}"), **weights}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LikenessNetwork]:
    """Networks of the published shapes, with drawn weights."""
    folder = tmp_path_factory.mktemp("likeness")
    return {name: load(folder / f"{name}.safetensors", state) for name, state in
            (("lpips", lpips_state()), ("dists", dists_state()))}  # fmt: skip


def load(path: Path, state: dict[str, Tensor]) -> LikenessNetwork:
    safetensors.torch.save_file(state, path)
    return LikenessFamily().load(Source(ModelCard(name=path.stem, architecture="safetensors"), path), Device("cpu"))


@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_equal_pictures_have_no_distance_and_others_more_with_each_change(
    networks: dict[str, LikenessNetwork], name: str
) -> None:
    network = networks[name]
    assert network.distance(PICTURE, PICTURE) == pytest.approx(0, abs=1e-5)
    values = []
    for by in (10, 40, 120):
        changed = (PICTURE + np.random.default_rng(1).normal(0, by, PICTURE.shape)).clip(0, 255)
        values.append(network.distance(PICTURE, changed.astype(np.uint8)))
    assert 0 < values[0] < values[1] < values[2]


@pytest.mark.parametrize("name", ["lpips", "dists"])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (64, 64)])
def test_small_pictures_are_compared(networks: dict[str, LikenessNetwork], name: str, size: tuple[int, int]) -> None:
    pixels = np.full((*size, 3), 90, np.uint8)
    assert networks[name].distance(pixels, pixels) == pytest.approx(0, abs=1e-4)


def test_a_distance_is_the_published_sum_over_layers(networks: dict[str, LikenessNetwork]) -> None:
    state = lpips_state()
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    other = 255 - PICTURE

    def features(pixels: np.ndarray) -> list[Tensor]:
        planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        planes = (planes - shift.view(1, 3, 1, 1)) / scale.view(1, 3, 1, 1)
        found = []
        for layer, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
            if layer in (3, 6):
                planes = torch.nn.MaxPool2d(3, 2)(planes)
            out, into, side = ALEXNET[layer]
            convolution = torch.nn.Conv2d(into, out, side, stride, padding)
            convolution.load_state_dict({key: state[f"features.{layer}.{key}"] for key in ("weight", "bias")})
            planes = convolution(planes).relu().detach()
            found.append(planes / (planes.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    expected = sum(
        float((one - two).pow(2).mean(1).mean()) for one, two in zip(features(PICTURE), features(other), strict=True)
    )
    assert networks["lpips"].distance(PICTURE, other) == pytest.approx(expected, rel=1e-4)


def test_layers_may_be_named_as_their_authors_name_them(networks: dict[str, LikenessNetwork], tmp_path: Path) -> None:
    state = lpips_state("net.slice1.{layer}")
    assert load(tmp_path / "lpips.safetensors", state).distance(PICTURE, 255 - PICTURE) == pytest.approx(
        networks["lpips"].distance(PICTURE, 255 - PICTURE)
    )


def test_other_weights_and_no_weights_are_refused(tmp_path: Path) -> None:
    state = lpips_state()
    del state["features.8.weight"]
    with pytest.raises(ModelError, match="not those of the published network"):
        load(tmp_path / "lpips.safetensors", state)
    broken = tmp_path / "dists.safetensors"
    broken.write_bytes(b"no weights")
    with pytest.raises(ModelError, match="not readable"):
        LikenessFamily().load(Source(ModelCard(name="dists", architecture="safetensors"), broken), Device("cpu"))


def test_a_network_holds_its_weights_until_it_is_closed(tmp_path: Path) -> None:
    network = load(tmp_path / "lpips.safetensors", lpips_state())
    assert sum(network.holdings().values()) > (tmp_path / "lpips.safetensors").stat().st_size
    network.close()
    assert sum(network.holdings().values()) == 0


def test_files_that_an_installation_names_are_served_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "any.safetensors"
    path.write_bytes(b"")
    served = ServedModels(
        ("nowhere", f"lpips={path}"), {"likeness": cast("Family", LikenessFamily())}, allow_download=False
    )
    found = served.find(Need("lpips", "likeness", "lpips"))
    assert (found.name, found.source.folder) == ("lpips", path)
    with pytest.raises(ModelError, match="not served here"):
        served.find(Need("dists", "likeness", "dists"))
