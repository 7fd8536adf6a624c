"""The family of networks that tell how alike two pictures look: LPIPS and DISTS, by weights that an installation names.

No package ships their weights. The files hold the state of the published networks as safetensors: LPIPS on AlexNet
(Zhang et al., arXiv:1801.03924, version 0.1), DISTS on VGG-16 (Ding et al., arXiv:2004.07728). The layers may be named
as their authors' code names them, or as torchvision's `features`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Hashable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from modelkit.card import ModelCard
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.family import Source

if TYPE_CHECKING:
    from modelkit.device import Device

Pixels = NDArray[np.uint8]
Triple = tuple[float, float, float]

_LAYER = re.compile(r"(?:slice\d|stage\d|features)\.(\d+)\.(weight|bias)$")
_LINEAR = re.compile(r"lins?\.?(\d)\.model\.1\.weight$")
# The networks halve a picture up to five times: smaller ones are enlarged first.
_LEAST_SIDE = 64
# Activations of the first layers of a face of 512 pixels, beside the weights.
_ACTIVATION_BYTES = 256 << 20

# AlexNet's convolutions: place among the layers, stride, padding, and whether pooling precedes it.
_ALEXNET = ((0, 4, 2, False), (3, 1, 2, True), (6, 1, 1, True), (8, 1, 1, False), (10, 1, 1, False))
_LPIPS_SHIFT, _LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# VGG-16's convolutions by stage.
_VGG = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_STABLE = 1e-6


class LikenessFamily:
    """Loads the networks of files that an installation names `lpips` and `dists`."""

    packaged: tuple[ModelCard, ...] = ()

    def matches(self, card: ModelCard) -> bool:
        """Take safetensors files of these names."""
        return card.architecture == "safetensors" and card.name in _NETWORKS

    def size(self, source: Source, device: Device) -> int:  # noqa: ARG002 -- the protocol's signature
        """Return the bytes of the weights, and of what a run holds."""
        assert source.folder is not None  # the file: no such network is packaged
        return source.folder.stat().st_size + _ACTIVATION_BYTES

    def load(self, source: Source, device: Device) -> LikenessNetwork:
        """Load a network."""
        assert source.folder is not None  # as above
        try:
            state = safetensors.torch.load_file(source.folder)
        except (OSError, safetensors.SafetensorError) as error:
            raise ModelError(f"The weights of {source.card.name} are not readable.", ModelErrorKind.RESOURCE) from error
        try:
            measure = _NETWORKS[source.card.name](state, device.name)
        except KeyError as error:
            raise ModelError(
                f"The weights of {source.card.name} are not those of the published network.", ModelErrorKind.RESOURCE
            ) from error
        return LikenessNetwork(measure, self.size(source, device))


class LikenessNetwork:
    """A network that tells how far two pictures look apart; safe to share between threads, which take turns.

    Args:
        measure: The network.
        size: Bytes that it holds.
    """

    labels: tuple[str, ...] = ()

    def __init__(self, measure: _Lpips | _Dists, size: int) -> None:
        self._measure: _Lpips | _Dists | None = measure
        self._size = size
        self._lock = threading.Lock()

    @torch.inference_mode()
    def distance(self, first: Pixels, second: Pixels) -> float:
        """Return the distance of two RGB pictures of one size; 0 for equal ones."""
        with self._lock:
            assert self._measure is not None  # nobody uses a closed model
            return self._measure(first, second)

    def holdings(self) -> Mapping[Hashable, int]:
        """Return the bytes of weights and of a run."""
        return {self: self._size}

    def close(self) -> None:
        """Let go of the weights."""
        with self._lock:
            self._measure = None
            self._size = 0


class _Convolutions:
    """The convolutions of a published state, each with the rectifier that follows it.

    Args:
        state: The published state.
        layers: Their places among the network's layers.
        device: A torch device.
    """

    def __init__(self, state: Mapping[str, Tensor], layers: Iterable[int], device: str) -> None:
        self.device = device
        found = {(int(place[1]), place[2]): tensor for name, tensor in state.items() if (place := _LAYER.search(name))}
        self._layers = {
            layer: (found[layer, "weight"].float().to(device), found[layer, "bias"].float().to(device))
            for layer in layers
        }

    def __call__(self, planes: Tensor, layer: int, stride: int, padding: int) -> Tensor:
        weight, bias = self._layers[layer]
        return functional.relu(functional.conv2d(planes, weight, bias, stride, padding))

    def tensor(self, pixels: Pixels) -> Tensor:
        """Return a picture as (1, 3, height, width), 0 to 1, enlarged where it is too small."""
        planes = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device).permute(2, 0, 1)[None].float() / 255
        height, width = planes.shape[-2:]
        if min(height, width) >= _LEAST_SIDE:
            return planes
        size = [max(_LEAST_SIDE, height), max(_LEAST_SIDE, width)]
        return functional.interpolate(planes, size=size, mode="bilinear", align_corners=False)

    def normal(self, planes: Tensor, mean: Triple, deviation: Triple) -> Tensor:
        """Take the mean from each channel, and divide by the deviation."""
        column = [torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (mean, deviation)]
        return (planes - column[0]) / column[1]


class _Lpips:
    """LPIPS on AlexNet: about 0.7 for pictures that have nothing in common."""

    def __init__(self, state: Mapping[str, Tensor], device: str) -> None:
        self._convolve = _Convolutions(state, (layer for layer, *_ in _ALEXNET), device)
        found = {int(place[1]): tensor for name, tensor in state.items() if (place := _LINEAR.search(name))}
        self._linear = [found[index].float().to(device) for index in range(len(_ALEXNET))]

    def __call__(self, first: Pixels, second: Pixels) -> float:
        features = zip(self._features(first), self._features(second), self._linear, strict=True)
        return sum(float(functional.conv2d((one - other) ** 2, linear).mean()) for one, other, linear in features)

    def _features(self, pixels: Pixels) -> list[Tensor]:
        planes = self._convolve.normal(self._convolve.tensor(pixels) * 2 - 1, _LPIPS_SHIFT, _LPIPS_SCALE)
        features = []
        for layer, stride, padding, pooled in _ALEXNET:
            if pooled:
                planes = functional.max_pool2d(planes, 3, 2)
            planes = self._convolve(planes, layer, stride, padding)
            features.append(planes / (planes.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return features


class _Dists:
    """DISTS on VGG-16: little for equal texture that lies elsewhere."""

    def __init__(self, state: Mapping[str, Tensor], device: str) -> None:
        self._convolve = _Convolutions(state, (layer for stage in _VGG for layer in stage), device)
        self._alpha, self._beta = (state[name].float().flatten().to(device) for name in ("alpha", "beta"))
        hann = torch.hann_window(5, periodic=False)[1:-1]
        window = torch.outer(hann, hann)
        self._window = (window / window.sum()).to(device)

    def __call__(self, first: Pixels, second: Pixels) -> float:
        likeness, place = 0.0, 0
        for one, other in zip(self._features(first), self._features(second), strict=True):
            a, b = one.flatten(2)[0], other.flatten(2)[0]
            mean_a, mean_b = a.mean(1), b.mean(1)
            texture = (2 * mean_a * mean_b + _STABLE) / (mean_a**2 + mean_b**2 + _STABLE)
            covariance = (a * b).mean(1) - mean_a * mean_b
            variances = a.var(1, unbiased=False) + b.var(1, unbiased=False)
            structure = (2 * covariance + _STABLE) / (variances + _STABLE)
            here = slice(place, place + a.shape[0])
            likeness += float((self._alpha[here] * texture + self._beta[here] * structure).sum())
            place += a.shape[0]
        return 1 - likeness / float(self._alpha.sum() + self._beta.sum())

    def _features(self, pixels: Pixels) -> list[Tensor]:
        picture = self._convolve.tensor(pixels)
        planes = self._convolve.normal(picture, _IMAGENET_MEAN, _IMAGENET_DEVIATION)
        features = [picture]
        for number, stage in enumerate(_VGG):
            if number:
                planes = self._pooled(planes)
            for layer in stage:
                planes = self._convolve(planes, layer, 1, 1)
            features.append(planes)
        return features

    def _pooled(self, planes: Tensor) -> Tensor:
        """Halve by the root of a windowed mean of squares, which has no aliases (Hénaff and Simoncelli 2015)."""
        channels = planes.shape[1]
        window = self._window.expand(channels, 1, 3, 3)
        squares = functional.conv2d(planes.square(), window, stride=2, padding=1, groups=channels)
        return (squares + 1e-12).sqrt()


_NETWORKS: dict[str, type[_Lpips | _Dists]] = {"lpips": _Lpips, "dists": _Dists}
