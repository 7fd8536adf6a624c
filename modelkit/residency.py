"""Models that are resident: loaded when asked for, kept while they fit a budget of bytes, pinned while in use."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import logging
import os
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import psutil
import torch

from modelkit.card import ModelCard, read_card
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.flux import FluxModel, dtype_of
from modelkit.upscale import Upscaler
from modelkit.vision import Vision

_log = logging.getLogger(__name__)

# Parts without adapters, and so without a state of their own: models that hold the same bytes can share them.
_SHAREABLE = ("text_encoder_2", "vae")
# Activations need room beside the weights: the share of a device that weights may take where no budget is set.
_DEVICE_SHARE = 0.8
_PIN_WAIT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class ResidentModel:
    """A model that is loaded.

    Attributes:
        name: Its name.
        family: Its family.
        bytes: What its weights and adapters hold; parts that it shares with another model count for both here.
        pins: Uses under way.
        loras: Labels of its adapters.
    """

    name: str
    family: str
    bytes: int
    pins: int
    loras: tuple[str, ...]


@dataclass(slots=True)
class _Entry:
    model: FluxModel
    pins: int = 0


class ModelNeed(Protocol):
    """A model that somebody must have: the name to give it under, its family, its own name."""

    @property
    def name(self) -> str: ...  # noqa: D102 -- see above
    @property
    def family(self) -> str: ...  # noqa: D102 -- see above
    @property
    def model(self) -> str | None: ...  # noqa: D102 -- see above


class Models:
    """The models of one device. Safe to share between threads.

    Args:
        default_model: Folder or hub name of the model that tasks get which name none.
        device: A torch device; `auto` takes CUDA where there is one.
        budget_bytes: Bytes that weights may hold; 0 takes four fifths of what the device has free.
        threads: Processor threads of torch; 0 leaves it to torch.
        extra_models: Folders or hub names that tasks may ask for beside the default.
        allow_download: Whether a hub name that is not in the local cache may be fetched.
    """

    def __init__(
        self,
        default_model: str,
        device: str = "auto",
        budget_bytes: int = 0,
        *,
        threads: int = 0,
        extra_models: Sequence[str] = (),
        allow_download: bool = False,
    ) -> None:
        self._default = default_model
        self._served = (default_model, *extra_models)
        self._allow_download = allow_download
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.budget_bytes = budget_bytes or int(_DEVICE_SHARE * _free_bytes(self.device))
        if threads:
            torch.set_num_threads(threads)
        self._threads = threads
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._parts: WeakValueDictionary[str, torch.nn.Module] = WeakValueDictionary()
        self._cards: dict[str, tuple[Path, ModelCard]] = {}
        self._changed = threading.Condition(threading.RLock())
        self._upscaler: Upscaler | None = None
        self._vision: Vision | None = None

    @contextmanager
    def lend(self, needs: Sequence[ModelNeed]) -> Iterator[Mapping[str, Any]]:
        """Lend models by the names of the needs, loaded if need be; they stay in memory for as long as they are lent.

        Raises:
            ModelError: One is not served here, does not fit the budget, or does not load.
        """
        with ExitStack() as stack:
            lent: dict[str, Any] = {}
            for need in needs:
                if need.family == "flux":
                    lent[need.name] = stack.enter_context(self.flux(need.model))
                else:
                    lent[need.name] = {"upscaler": self.upscaler, "vision": self.vision}[need.family]()
            yield lent

    @contextmanager
    def flux(self, name: str | None = None) -> Iterator[FluxModel]:
        """Lend a FLUX model, loaded if need be; it stays resident for as long as it is lent.

        Args:
            name: The model's name, folder or hub name; the default model where None.

        Raises:
            ModelError: It is not served here, does not fit the budget, or does not load.
        """
        entry = self._pin(self._place(name))
        try:
            yield entry.model
        finally:
            with self._changed:
                entry.pins -= 1
                self._trim()
                self._changed.notify_all()

    def card(self, name: str | None = None) -> ModelCard:
        """Read the card of a model that is served here, without loading it."""
        return self._resolve(self._place(name))[1]

    def upscaler(self) -> Upscaler:
        """Lend the upscaler."""
        with self._changed:
            if self._upscaler is None:
                self._upscaler = Upscaler()
            return self._upscaler

    def vision(self) -> Vision:
        """Lend the networks that find people in pictures."""
        with self._changed:
            if self._vision is None:
                self._vision = Vision(self._threads)
            return self._vision

    def resident(self) -> list[ResidentModel]:
        """List the models that are loaded, the least recently used first."""
        with self._changed:
            return [
                ResidentModel(
                    entry.model.card.name,
                    entry.model.card.architecture,
                    _bytes([entry.model]),
                    entry.pins,
                    entry.model.adapters.labels,
                )
                for entry in self._entries.values()
            ]

    def free(self) -> None:
        """Unload every model that is not in use."""
        with self._changed:
            for name in [name for name, entry in self._entries.items() if not entry.pins]:
                self._evict(name)

    def _place(self, name: str | None) -> str:
        """Map what a task asks for to a folder or hub name that is served; a task must not name a path of its own."""
        if not name or name in self._served:
            return name or self._default
        for served in self._served:
            try:
                if self._resolve(served)[1].name == name:
                    return served
            except ModelError:
                continue
        raise ModelError("The model that was asked for is not served here.")

    def _resolve(self, place: str) -> tuple[Path, ModelCard]:
        with self._changed:
            if place not in self._cards:
                folder = Path(place)
                if not folder.is_dir():
                    folder = self._from_hub(place)
                if not (folder / "model_index.json").is_file():
                    raise ModelError("The model of this worker is not a diffusers folder.", ModelErrorKind.RESOURCE)
                self._cards[place] = (folder, read_card(folder))
            return self._cards[place]

    def _from_hub(self, place: str) -> Path:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 -- half a second that a folder does not need

        try:
            return Path(
                snapshot_download(
                    place,
                    local_files_only=not self._allow_download,
                    allow_patterns=["*.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"],
                )
            )
        except Exception as error:
            _log.error("model %s was not found", place, exc_info=error)
            raise ModelError("The model of this worker is not on this machine.", ModelErrorKind.RESOURCE) from error

    def _pin(self, place: str) -> _Entry:
        with self._changed:
            if place not in self._entries:
                folder, card = self._resolve(place)
                self._make_room(_size_on_device(folder, dtype_of(self.device)), card.name)
                if place not in self._entries:  # making room may have waited, and let another thread load it
                    self._entries[place] = _Entry(self._load(folder, card))
            entry = self._entries[place]
            self._entries.move_to_end(place)
            entry.pins += 1
            return entry

    def _load(self, folder: Path, card: ModelCard) -> FluxModel:
        began = time.monotonic()
        prints = {part: _fingerprint(folder / part, self.device) for part in _SHAREABLE if (folder / part).is_dir()}
        shared = {part: self._parts[mark] for part, mark in prints.items() if mark in self._parts}
        try:
            model = FluxModel.load(folder, card, name=card.name, device=self.device, shared=shared)
        except torch.cuda.OutOfMemoryError as error:
            _release()
            raise ModelError("The device has too little memory for the model.", ModelErrorKind.RESOURCE) from error
        for part, mark in prints.items():
            self._parts[mark] = model.components[part]
        _log.info("loaded model %s in %.1f s", card.name, time.monotonic() - began)
        return model

    def _make_room(self, wanted: int, name: str) -> None:
        if wanted > self.budget_bytes:
            raise ModelError(
                f"The model {name} needs {wanted >> 20} MiB, "
                f"and this worker's budget is {self.budget_bytes >> 20} MiB.",
                ModelErrorKind.RESOURCE,
            )
        deadline = time.monotonic() + _PIN_WAIT_SECONDS
        while self._held() + wanted > self.budget_bytes:
            idle = next((place for place, entry in self._entries.items() if not entry.pins), None)
            if idle is not None:
                self._evict(idle)
            elif not self._changed.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                raise ModelError(f"No memory came free for the model {name}.", ModelErrorKind.RESOURCE, retryable=True)

    def _trim(self) -> None:
        """Adapters that a use brought in may have passed the budget; the least recently used models make up for it."""
        while self._held() > self.budget_bytes:
            idle = [place for place, entry in self._entries.items() if not entry.pins]
            if not idle or len(self._entries) == 1:
                return
            self._evict(idle[0])

    def _held(self) -> int:
        return _bytes([entry.model for entry in self._entries.values()])

    def _evict(self, place: str) -> None:
        entry = self._entries.pop(place)
        entry.model.close()
        _log.info("unloaded model %s", entry.model.name)
        _release()


def _bytes(models: Sequence[FluxModel]) -> int:
    """Bytes of the models' weights, shared ones once, and of their adapters."""
    parameters = {
        parameter.data_ptr(): parameter.nbytes
        for model in models
        for part in model.components.values()
        for parameter in (*part.parameters(), *part.buffers())
    }
    return sum(parameters.values())


def _release() -> None:
    """Give freed weights back: Python's cycles, CUDA's cache, and the heap's free pages."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def _free_bytes(device: str) -> int:
    if torch.device(device).type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    available: int = psutil.virtual_memory().available
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            available = min(available, int(Path(limit).read_text("ascii")))
        except (OSError, ValueError):
            continue
    return available


def _size_on_device(folder: Path, dtype: torch.dtype) -> int:
    """Bytes that a model's weights will hold, from the headers of its files."""
    parts = [part for part, kind in json.loads((folder / "model_index.json").read_text("utf-8")).items() if kind]
    numbers = sum(
        _numbers(file) for part in parts if (folder / part).is_dir() for file in (folder / part).glob("*.safetensors")
    )
    return numbers * dtype.itemsize


def _numbers(file: Path) -> int:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    total = 0
    for name, entry in header.items():
        if name != "__metadata__":
            count = 1
            for side in entry["shape"]:
                count *= side
            total += count
    return total


def _fingerprint(folder: Path, device: str) -> str:
    """Name a part's content: small files by their hash, large ones by their place (the hub's cache uses the hash)."""
    digest = hashlib.sha256(device.encode())
    for file in sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")):
        real = file.resolve()
        size = real.stat().st_size
        if size <= 64 << 20:
            digest.update(real.read_bytes())
        else:
            digest.update(f"{os.fspath(real)}:{size}:{real.stat().st_mtime_ns}".encode())
    return digest.hexdigest()
