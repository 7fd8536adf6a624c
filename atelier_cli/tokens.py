"""Tokens signed with the mesh's secret."""

from collections.abc import Iterable
from typing import Final

from atelier_cli.environment import given
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.folder import DataFolder
from meshkit.auth import TokenIssuer

DEFAULT_TENANT: Final = "default"


def issue(folder: DataFolder, *, tenant: str, scopes: Iterable[str], ttl_seconds: float) -> str:
    """Return a token for the mesh on this folder.

    Raises:
        CliError: No mesh was ever started on the folder, a setting's file cannot be read, or the tenant or a scope is
            malformed.
    """
    secret = given("ATELIER_AUTH_SECRET") or folder.existing_credentials().auth_secret
    issuer = TokenIssuer(secret, given("ATELIER_AUTH_ISSUER"), audience=given("ATELIER_AUTH_AUDIENCE"))
    try:
        return issuer.issue("cli", tenant, scopes, ttl_seconds)
    except ValueError as error:
        raise CliError(f"No token: {error}.", ExitCode.USAGE) from error
