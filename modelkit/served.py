"""Which models a process serves: packaged ones, and folders or hub names that its settings list."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from modelkit.card import ModelCard, is_gguf, read_card
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.family import Family, Source

_log = structlog.get_logger(module=__name__)
# Only what diffusers and transformers read; never a pickle.
_HUB_FILES = ["*.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"]


class ModelNeed(Protocol):
    """A model that a batch must have: the key it is lent under, its family, and its name."""

    @property
    def name(self) -> str:
        """Key in what is lent."""
        ...

    @property
    def family(self) -> str:
        """Family of the model."""
        ...

    @property
    def model(self) -> str | None:
        """Name of the model; the family's default where None."""
        ...

    @property
    def others(self) -> tuple[str, ...]:
        """Families that a model which is named may be of instead."""
        ...


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that is served here.

    Attributes:
        family_name: Name of its family.
        family: Its family.
        source: Where it comes from.
    """

    family_name: str
    family: Family
    source: Source

    @property
    def name(self) -> str:
        """Name under which tasks ask for it."""
        return self.source.card.name

    @property
    def key(self) -> Hashable:
        """Tell it from all others."""
        return (self.family_name, self.source.folder or self.name)


class ServedModels:
    """Finds the model of a need. Safe to share between threads.

    Args:
        places: Folders, hub names, GGUF files, and single files with names (`silueta=/models/silueta.onnx`), the
            default first.
        families: Families by their names.
        allow_download: Whether a hub name that is not in the local cache may be fetched.
        defaults: By family, the place of the model that tasks get which name none; it comes before packaged ones.
    """

    def __init__(
        self,
        places: Sequence[str],
        families: Mapping[str, Family],
        *,
        allow_download: bool,
        defaults: Mapping[str, str] | None = None,
    ) -> None:
        self._defaults = dict(defaults or {})
        self._places = tuple(dict.fromkeys((*places, *self._defaults.values())))
        self._families = families
        self._allow_download = allow_download
        self._sources: dict[str, Source] = {}
        self._lock = threading.Lock()

    def find(self, need: ModelNeed) -> ServedModel:
        """Find the model of a need: the one that it names, or the first of the family.

        Only what is served here is found: a task must not name a path of its own.

        Raises:
            ModelError: No such model is served here, or its files are not here.
        """
        named = need.model or self._defaults.get(need.family)
        families = {name: self._families[name] for name in (need.family, *(need.others if named else ()))}
        for name, family in families.items():
            for card in family.packaged:
                if named in (None, card.name):
                    return ServedModel(name, family, Source(card))
        return self._placed(need, named, families)

    def missing(self, families: Iterable[str]) -> ModelError | None:
        """Return what a default model of families lacks here; None where all are there.

        One that may be downloaded is once it is needed.
        """
        for name in () if self._allow_download else families:
            default = "" if self._families[name].packaged else next(iter(self._places), "")
            if place := self._defaults.get(name, default):
                try:
                    self._source(place)
                except ModelError as error:
                    return error
        return None

    def _placed(self, need: ModelNeed, named: str | None, families: Mapping[str, Family]) -> ServedModel:
        other_kind = False
        for place in self._places:
            try:
                source = self._source(place)
            except ModelError:
                if named in (None, place):  # another model must not stand in for it
                    raise
                continue
            if named in (None, place, source.card.name):
                for name, family in families.items():
                    if family.matches(source.card):
                        return ServedModel(name, family, source)
                other_kind = named is not None
        if other_kind:
            raise ModelError("The model that was asked for is of a kind that cannot do this task.")
        if named is not None:
            raise ModelError("The model that was asked for is not served here.")
        raise ModelError(f"This worker serves no model of the family {need.family}.", ModelErrorKind.RESOURCE)

    def _source(self, place: str) -> Source:
        with self._lock:
            if place not in self._sources:
                name, named, file = place.partition("=")
                if named:
                    # What a file is shows in its suffix: no card lies beside it.
                    card = ModelCard(name=name, architecture=Path(file).suffix.lstrip(".").lower() or "file")
                    self._sources[place] = Source(card, Path(file))
                    return self._sources[place]
                folder = Path(place)
                if not folder.is_dir() and not is_gguf(folder):
                    folder = self._from_hub(place)
                self._sources[place] = Source(read_card(folder), folder)
            return self._sources[place]

    def _from_hub(self, place: str) -> Path:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 -- half a second that a folder does not need

        try:
            return Path(snapshot_download(place, local_files_only=not self._allow_download, allow_patterns=_HUB_FILES))
        except Exception as error:
            _log.error("model_not_found", model=place, exc_info=error)
            raise ModelError("The model of this worker is not on this machine.", ModelErrorKind.RESOURCE) from error
