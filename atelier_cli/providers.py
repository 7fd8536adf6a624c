"""Which providers the mesh on this machine calls, and by which credentials."""

from collections.abc import Iterator
from functools import cache
from typing import Final

from atelier_cli.environment import PREFIX, given
from atelier_cli.errors import CliError, ExitCode
from meshkit.accounts import CREDENTIALS
from meshkit.catalog import OWN_PROVIDERS, PROVIDERS

_CALLED: Final = "ATELIER_WORKER_PROVIDERS"
_SERVED: Final = "ATELIER_SERVED_PROVIDERS"
_EVALUATES: Final = "ATELIER_EVALUATION_PROVIDERS"
_EDITOR: Final = "ATELIER_ULTIMATE_EDITOR"


def chosen_providers(*, asked: bool) -> tuple[str, ...]:
    """Return the providers that a worker of their own is to call.

    Args:
        asked: Whether the user asks for such a worker.

    Returns:
        Those that the environment has a credential of, and of them those alone that `ATELIER_SERVED_PROVIDERS` names,
        where it is set. Where such a worker is asked for, all that it names. None where the worker of the device calls
        providers itself.

    Raises:
        CliError: Such a worker is asked for and would call nobody, or the worker of the device calls providers itself.
    """
    if calls_itself():
        if asked:
            message = f"{_CALLED} is set, so the worker calls providers itself; leave --providers out."
            raise CliError(message, ExitCode.USAGE)
        return ()
    # Who opens the account of each: the pipelines of the device are called where a provider redraws for them.
    accounts = {name: name for name in PROVIDERS if name not in OWN_PROVIDERS}
    if (editor := (given(_EDITOR) or "").strip().upper()) in accounts:
        accounts |= {name: editor for name in OWN_PROVIDERS if name != PROVIDERS["LOCAL"].name}
    served = given(_SERVED)
    named = None if served is None else {name.strip().upper() for name in served.split(",")}
    found = tuple(
        name
        for name in PROVIDERS
        if name in accounts
        and (named is None or name in named)
        and ((asked and named is not None) or any(given(setting) for setting in _credentials(accounts[name])))
    )
    if asked and not found:
        message = (
            f"No provider is named: set a credential ({', '.join(sorted(credentials_of_providers()))}) or {_SERVED}."
        )
        raise CliError(message, ExitCode.USAGE)
    return found


def calls_itself() -> bool:
    """Whether the environment names the providers that the worker of the device is to call."""
    return given(_CALLED) is not None


def credentials_of_evaluation() -> frozenset[str]:
    """Return the settings that open accounts at the providers that are to evaluate pictures."""
    named = {name.strip().upper() for name in (given(_EVALUATES) or "").split(",")}
    return frozenset(setting for name in named & PROVIDERS.keys() for setting in _credentials(name))


@cache
def credentials_of_providers() -> frozenset[str]:
    """Return the settings that open accounts at providers: they are given to those alone that call them."""
    return frozenset(setting for name in PROVIDERS for setting in _credentials(name))


def _credentials(provider: str) -> Iterator[str]:
    return (f"{PREFIX}{setting.upper()}" for setting in CREDENTIALS[provider])
