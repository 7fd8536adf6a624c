"""Which providers the mesh on this machine calls, and by which credentials."""

from collections.abc import Iterator
from functools import cache
from typing import Final

from atelier_cli.environment import PREFIX, given
from atelier_cli.errors import CliError, ExitCode
from meshkit.accounts import CREDENTIALS
from meshkit.catalog import PROVIDERS

LOCAL: Final = PROVIDERS["LOCAL"].name
_CALLED: Final = "ATELIER_WORKER_PROVIDERS"
_SERVED: Final = "ATELIER_SERVED_PROVIDERS"


def chosen_providers(*, all_of_them: bool) -> tuple[str, ...]:
    """Return the providers that a worker of their own is to call.

    Args:
        all_of_them: Whether also those without a credential in the environment; what needs one fails then.

    Returns:
        Those that the environment has a credential of, or all, in the contract's order; of them those alone that
        `ATELIER_SERVED_PROVIDERS` names, where it is set. None where the worker of the device calls providers itself.

    Raises:
        CliError: All are asked for, and the worker of the device calls providers itself.
    """
    if calls_itself():
        if all_of_them:
            raise CliError(
                f"{_CALLED} is set, so the worker calls providers itself; leave --providers out.", ExitCode.USAGE
            )
        return ()
    served = given(_SERVED)
    named = None if served is None else {name.strip().upper() for name in served.split(",")}
    return tuple(
        name
        for name in PROVIDERS
        if name != LOCAL
        and (named is None or name in named)
        and (all_of_them or any(given(setting) for setting in _credentials(name)))
    )


def calls_itself() -> bool:
    """Whether the environment names the providers that the worker of the device is to call."""
    return given(_CALLED) is not None


@cache
def credentials_of_providers() -> frozenset[str]:
    """Return the settings that open accounts at providers: they are given to the workers that call them alone."""
    return frozenset(setting for name in PROVIDERS for setting in _credentials(name))


def _credentials(provider: str) -> Iterator[str]:
    return (f"{PREFIX}{setting.upper()}" for setting in CREDENTIALS[provider])
