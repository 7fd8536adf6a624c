"""The model that a mesh is told to use: whether it is on this machine."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from atelier_cli.environment import given

# A worker looks for relative folders here too.
_ROOT: Final = Path(__file__).parents[1]
SHIPPED: Final = "models/garments/weights"
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TRUE: Final = frozenset({"1", "true", "t", "yes", "y", "on"})


@dataclass(frozen=True, slots=True)
class ChosenModel:
    """The worker's default model.

    Attributes:
        place: A folder or a name on a model hub; empty for the model that ships.
        download: Whether a name that is not on this machine may be fetched.
    """

    place: str = ""
    download: bool = False

    @classmethod
    def of_environment(cls) -> Self:
        """Return what ATELIER_MODEL and ATELIER_MODEL_DOWNLOAD say.

        Raises:
            CliError: A file that holds one of them cannot be read.
        """
        return cls(absolute(given("ATELIER_MODEL") or ""), (given("ATELIER_MODEL_DOWNLOAD") or "").lower() in _TRUE)

    @property
    def on_hub(self) -> bool:
        """Whether it is called by a name on a model hub, and no folder is called so."""
        return bool(_HUB_NAME.fullmatch(self.place)) and not any(
            map(_is_folder, (Path(self.place), _ROOT / self.place))
        )

    @property
    def folder(self) -> Path | None:
        """Where it lies on this machine; None where it does not."""
        named = Path(self.place or SHIPPED)
        folders = [named, _ROOT / named]
        if _HUB_NAME.fullmatch(self.place):
            folders += sorted((_hub_cache() / f"models--{self.place.replace('/', '--')}" / "snapshots").glob("*"))
        return next((folder for folder in folders if _is_folder(folder)), None)

    def fault(self) -> str | None:
        """Return what keeps a worker from using it, and what to do, in a sentence; None if nothing does."""
        folder = self.folder
        if folder is not None:
            if any(folder.rglob("*.safetensors")):
                return None
            if not self.place:
                return f"There are no weights in {folder}; check the repository out whole."
            return f"ATELIER_MODEL names {folder}, which holds no model: it has no *.safetensors files."
        if not _HUB_NAME.fullmatch(self.place):
            return f"ATELIER_MODEL is {self.place or SHIPPED}, and there is no such folder."
        if self.download:
            return None
        return (
            f"ATELIER_MODEL is {self.place}, which is neither a folder here nor in the model hub's cache "
            f"({_hub_cache()}); ATELIER_MODEL_DOWNLOAD=true fetches it."
        )


def absolute(place: str) -> str:
    """Return a path as it holds wherever a process stands; a model hub's name stays as it is."""
    return str(Path(place).absolute()) if place and _is_folder(Path(place)) else place


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _hub_cache() -> Path:
    """Return the folder that huggingface_hub keeps models in, which takes half a second to import."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"
