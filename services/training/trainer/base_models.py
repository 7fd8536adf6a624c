"""The models that are trained here, by the names that trainings give."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_RESOURCE

from meshkit.logging import get_logger
from meshkit.worker.handlers import TaskFailed
from modelkit.card import ModelCard, read_card
from modelkit.errors import ModelError

_log = get_logger(__name__)

_TRAINABLE = "flux"
_SHIPPED = Path(__file__).resolve().parents[3] / "models"
# Only what diffusers and transformers read; never a pickle.
_HUB_FILES = ["*.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"]


@dataclass(frozen=True, slots=True)
class TrainableModel:
    """A model that is on this machine.

    Attributes:
        folder: Its folder.
        card: Its card.
    """

    folder: Path
    card: ModelCard

    @property
    def shipped(self) -> bool:
        """Whether it came with the program."""
        return self.folder.resolve().is_relative_to(_SHIPPED)


class TrainableModels:
    """Finds models.

    Args:
        places: Folders and hub names.
        allow_download: Whether a hub name that is not on this machine may be fetched.
    """

    def __init__(self, places: Sequence[str], *, allow_download: bool) -> None:
        self._places = tuple(places)
        self._allow_download = allow_download

    async def find(self, named: str) -> TrainableModel:
        """Return the model of a name: that of its card, its folder, or its name on the hub.

        Raises:
            TaskFailed: It is not trained here; RESOURCE.
        """
        others = []
        for place in self._places:
            model = await asyncio.to_thread(self._at, place)
            if model is None:
                continue
            if named not in (place, model.card.name):
                others.append(model.card.name)
            elif model.card.architecture == _TRAINABLE:
                return model
            else:
                raise _not_here(f"The model {named} is of a kind that is not trained here.")
        trained = f"trained here: {', '.join(sorted(others))}" if others else "this trainer has no model"
        raise _not_here(f"The base model {named} is not trained by this installation; {trained}.")

    def _at(self, place: str) -> TrainableModel | None:
        folder = Path(place)
        try:
            if not folder.is_dir():
                folder = self._from_hub(place)
            return TrainableModel(folder, read_card(folder))
        except ModelError as error:
            _log.warning("base_model_not_readable", model=place, why=error.message)
        except OSError as error:
            _log.warning("base_model_not_found", model=place, why=type(error).__name__)
        return None

    def _from_hub(self, place: str) -> Path:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 -- half a second that a folder does not need
        from huggingface_hub.errors import HFValidationError  # noqa: PLC0415 -- likewise

        try:
            return Path(snapshot_download(place, local_files_only=not self._allow_download, allow_patterns=_HUB_FILES))
        except HFValidationError as error:
            raise FileNotFoundError(place) from error


def _not_here(message: str) -> TaskFailed:
    # Trainers of an installation read the same settings: another attempt would meet the same.
    return TaskFailed(message, ERROR_CATEGORY_RESOURCE, retryable=False)
