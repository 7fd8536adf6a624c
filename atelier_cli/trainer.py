"""Whether the mesh on this machine trains, and which models."""

import json
from typing import Final

from atelier_cli.environment import given
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.model import ChosenModel

_SETTING: Final = "ATELIER_TRAINER"
TRAINED_MODELS: Final = "ATELIER_TRAINED_MODELS"
_TRAINABLE: Final = "flux"
_ANSWERS: Final = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}


def trains() -> bool:
    """Whether the environment has `atelier up` start a trainer: so it is, unless ATELIER_TRAINER is `off`.

    Raises:
        CliError: It is neither `on` nor `off`.
    """
    named = (given(_SETTING) or "on").lower()
    if named not in _ANSWERS:
        raise CliError(f"{_SETTING} is {named}; it is on or off.", ExitCode.USAGE)
    return _ANSWERS[named]


def trained_models() -> tuple[str, ...]:
    """Return the names of the models that the trainer of this machine trains; none where that is not known.

    They are what ATELIER_TRAINED_MODELS says, else those of ATELIER_MODEL and ATELIER_TRAINER_MODELS that it has or may
    fetch.

    Raises:
        CliError: A file that holds one of these settings cannot be read.
    """
    if said := given(TRAINED_MODELS):
        return _parts(said)
    chosen = ChosenModel.of_environment()
    names: dict[str, None] = {}
    for place in (chosen.place, *_parts(given("ATELIER_TRAINER_MODELS") or "")):
        names |= dict.fromkeys(_names(ChosenModel(place, chosen.download)))
    # The setting is a list with commas.
    return () if any("," in name for name in names) else tuple(names)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part for part in map(str.strip, text.split(",")) if part)


def _names(model: ChosenModel) -> tuple[str, ...]:
    """Return the names that a training may call a model by: that on the hub, and that of its card."""
    on_hub = (model.place,) if model.on_hub else ()
    folder = model.folder
    if folder is None:
        return on_hub if model.download else ()
    try:
        card = json.loads((folder / "atelier.json").read_text("utf-8"))
        architecture, name = card.get("architecture", _TRAINABLE), str(card["name"])
    except (OSError, ValueError, AttributeError, KeyError):
        return on_hub or (folder.name,)
    return tuple(dict.fromkeys((*on_hub, name))) if architecture == _TRAINABLE else ()
