"""Who is let in by the gateway."""

import pytest

from meshkit.auth import Principal
from meshkit.errors import ErrorKind, MeshError
from services.gateway.auth import Authenticator, GatewayCaller


class Verifier:
    async def verify(self, token: str) -> Principal:
        return Principal("ada", "acme", frozenset(token.split("+")))


@pytest.mark.parametrize("header", ["", "Basic abc", "Bearer", "Bearer ", "token", "Bearertoken"])
async def test_without_a_bearer_token_nobody_is_admitted(header: str) -> None:
    with pytest.raises(MeshError) as caught:
        await Authenticator(Verifier()).admit(header, "")
    assert caught.value.kind is ErrorKind.UNAUTHENTICATED


@pytest.mark.parametrize("header", ["Bearer read", "bearer   read", "BEARER read"])
async def test_the_scheme_is_read_in_any_case(header: str) -> None:
    caller = await Authenticator(Verifier()).admit(header, "read")
    assert (caller.tenant, caller.token) == ("acme", "read")


async def test_a_missing_scope_is_named() -> None:
    with pytest.raises(MeshError) as caught:
        await Authenticator(Verifier()).admit("Bearer write", "read")
    assert caught.value.kind is ErrorKind.FORBIDDEN
    assert caught.value.metadata["scope"] == "read"


async def test_scopes_that_bring_others_are_enough() -> None:
    for scope in ("admin", "operator", "mesh"):
        await Authenticator(Verifier()).admit(f"Bearer {scope}", "write")


def test_a_token_without_a_tenant_has_no_objects() -> None:
    with pytest.raises(MeshError) as caught:
        _ = GatewayCaller(Principal("job", "", frozenset({"mesh"})), "t").tenant
    assert caught.value.kind is ErrorKind.FORBIDDEN
