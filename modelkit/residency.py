"""Models in memory: loaded when they are lent, kept while they fit a budget of bytes, pinned while in use.

Invariants, for all families together:
- A load never makes the held bytes pass the budget. Adapters may pass it while a batch runs; when the batch returns its
  models, other models are evicted for them.
- A model that is lent is pinned, and a pinned model is not evicted.
- A batch pins all its models at once, or none while it waits, so two batches never wait for each other.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog
import torch

from modelkit.device import Device, release
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.family import LoadedModel, load_families
from modelkit.served import ModelNeed, ServedModel, ServedModels

_log = structlog.get_logger(module=__name__)

# Activations need room beside the weights: the share of a device that weights may take where no budget is set.
_DEVICE_SHARE = 0.8
_PIN_WAIT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class ResidentModel:
    """A model in memory.

    Attributes:
        name: Its name.
        family: Its family.
        bytes: What it holds; parts that it shares with another model count for both here.
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
    wanted: ServedModel
    model: LoadedModel
    pins: int = 0


def _untold(_name: str, _resident: bool) -> None:  # noqa: FBT001 -- a callback's argument
    """Nobody asks."""


class Models:
    """The models of one device. Safe to share between threads.

    Args:
        default_model: Folder or hub name of the model that tasks get which name none.
        device: A torch device; `auto` takes CUDA where there is one.
        budget_bytes: Bytes that models may hold; 0 takes four fifths of what the device has free. Models that run on
            the processor beside a GPU count too.
        threads: Processor threads of one computation; 0 leaves it to each library.
        extra_models: Folders or hub names that tasks may ask for beside the default.
        allow_download: Whether a hub name that is not in the local cache may be fetched.
        families: Names of the families to serve; all where None.
        defaults: By family, folder, file or hub name of the model that tasks get which name none.
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
        families: Iterable[str] | None = None,
        defaults: Mapping[str, str] | None = None,
    ) -> None:
        self._served = ServedModels(
            (default_model, *extra_models),
            load_families(families),
            allow_download=allow_download,
            defaults=defaults,
        )
        self._device = Device.choose(device, threads)
        self.budget_bytes = budget_bytes or int(_DEVICE_SHARE * self._device.free_bytes())
        if threads:
            torch.set_num_threads(threads)
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()  # the least recently used first
        self._changed = threading.Condition(threading.RLock())

    @property
    def device(self) -> str:
        """Name of the device."""
        return self._device.name

    def missing(self, families: Iterable[str]) -> ModelError | None:
        """Return what a default model of families lacks here, and load none; None where all are there."""
        return self._served.missing(families)

    @contextmanager
    def lend(
        self, needs: Sequence[ModelNeed], on_loan: Callable[[str, bool], None] = _untold
    ) -> Iterator[Mapping[str, Any]]:
        """Lend models by the names of the needs, loaded if need be; they stay in memory for as long as they are lent.

        The first need counts as the most recently used.

        Args:
            needs: What is needed.
            on_loan: Called for each need with the name of its model and whether that was in memory.

        Raises:
            ModelError: A model is not served here, does not load, or all of them do not fit the budget.
        """
        wanted = {need.name: self._served.find(need) for need in needs}
        if len(wanted) < len(needs):
            raise ValueError("two needs have one name")
        entries, loaded = self._pin({one.key: one for one in wanted.values()})
        try:
            for one in wanted.values():
                on_loan(one.name, one.key not in loaded)
            yield {name: entries[one.key].model for name, one in wanted.items()}
        finally:
            self._unpin(entries.values())

    def resident(self) -> list[ResidentModel]:
        """List the models in memory, the least recently used first."""
        with self._changed:
            return [
                ResidentModel(
                    entry.wanted.name, entry.wanted.family_name, _bytes([entry.model]), entry.pins, entry.model.labels
                )
                for entry in self._entries.values()
            ]

    def free(self) -> None:
        """Unload every model that is not in use."""
        with self._changed:
            for key in [key for key, entry in self._entries.items() if not entry.pins]:
                self._evict(key)

    def _pin(self, wanted: Mapping[Hashable, ServedModel]) -> tuple[dict[Hashable, _Entry], set[Hashable]]:
        """Pin models; return them, and which of them had to be loaded."""
        loaded: set[Hashable] = set()
        with self._changed:
            self._make_room(wanted)
            for key, one in wanted.items():
                if key not in self._entries:
                    self._entries[key] = _Entry(one, self._load(one))
                    loaded.add(key)
            for key in reversed(wanted):
                self._entries.move_to_end(key)
                self._entries[key].pins += 1
            return {key: self._entries[key] for key in wanted}, loaded

    def _unpin(self, entries: Iterable[_Entry]) -> None:
        with self._changed:
            for entry in entries:
                entry.pins -= 1
            self._trim()
            self._changed.notify_all()

    def _load(self, wanted: ServedModel) -> LoadedModel:
        began = time.monotonic()
        try:
            model = wanted.family.load(wanted.source, self._device)
        except (MemoryError, torch.cuda.OutOfMemoryError) as error:
            release()
            raise ModelError("The device has too little memory for the model.", ModelErrorKind.RESOURCE) from error
        _log.info(
            "model_loaded",
            model=wanted.name,
            family=wanted.family_name,
            bytes=_bytes([model]),
            seconds=round(time.monotonic() - began, 1),
        )
        return model

    def _make_room(self, wanted: Mapping[Hashable, ServedModel]) -> None:
        """Evict the least recently used models until all that are wanted fit, and wait for pinned ones where need be.

        No model is pinned here, so that nobody waits for this thread while it waits.
        """
        sizes: dict[Hashable, int] = {}
        deadline = time.monotonic() + _PIN_WAIT_SECONDS
        # While this thread waits, another may load or evict what it wants: each turn starts anew.
        while missing := [key for key in wanted if key not in self._entries]:
            for key in missing:
                if key not in sizes:
                    sizes[key] = wanted[key].family.size(wanted[key].source, self._device)
            needed = sum(sizes[key] for key in missing)
            kept = _bytes(self._entries[key].model for key in wanted if key in self._entries)
            if kept + needed > self.budget_bytes:
                raise self._too_large(
                    {
                        one.name: sizes[key] if key in missing else _bytes([self._entries[key].model])
                        for key, one in wanted.items()
                    }
                )
            if self._held() + needed <= self.budget_bytes:
                return
            idle = next((key for key, entry in self._entries.items() if not entry.pins and key not in wanted), None)
            if idle is not None:
                self._evict(idle)
            elif not self._changed.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                raise ModelError(
                    f"No memory came free for the model {wanted[missing[0]].name}.",
                    ModelErrorKind.RESOURCE,
                    retryable=True,
                )

    def _too_large(self, sizes: Mapping[str, int]) -> ModelError:
        """Say which models do not fit the budget: one by itself, or all of them together."""
        alone = {name: size for name, size in sizes.items() if size > self.budget_bytes} or sizes
        *names, last = alone
        models = f"models {', '.join(names)} and {last} need" if names else f"model {last} needs"
        return ModelError(
            f"The {models} {sum(alone.values()) >> 20} MiB, and this worker's budget is {self.budget_bytes >> 20} MiB.",
            ModelErrorKind.RESOURCE,
        )

    def _trim(self) -> None:
        """Evict the least recently used models if adapters that a batch loaded have passed the budget.

        The last model stays, whatever its adapters hold: the next batch would only load it again.
        """
        while self._held() > self.budget_bytes and len(self._entries) > 1:
            idle = next((key for key, entry in self._entries.items() if not entry.pins), None)
            if idle is None:
                return
            self._evict(idle)

    def _held(self) -> int:
        return _bytes(entry.model for entry in self._entries.values())

    def _evict(self, key: Hashable) -> None:
        entry = self._entries.pop(key)
        entry.model.close()
        _log.info("model_unloaded", model=entry.wanted.name, family=entry.wanted.family_name)
        del entry  # the last reference, so that `release` finds its memory free
        release()


def _bytes(models: Iterable[LoadedModel]) -> int:
    """Bytes that models hold together, shared ones once."""
    held: dict[Hashable, int] = {}
    for model in models:
        held.update(model.holdings())
    return sum(held.values())
