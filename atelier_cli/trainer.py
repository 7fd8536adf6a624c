"""Whether the mesh on this machine trains."""

from typing import Final

from atelier_cli.environment import given
from atelier_cli.errors import CliError, ExitCode

_SETTING: Final = "ATELIER_TRAINER"
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
