import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from meshkit import jwks
from meshkit.jwks import Jwks, KeysUnavailableError


def document(**keys: Any) -> Any:
    entries = []
    for kid, key in keys.items():
        name = "EdDSA" if isinstance(key, ed25519.Ed25519PrivateKey) else "ES256"
        entries.append({**json.loads(jwt.get_algorithm_by_name(name).to_jwk(key.public_key())), "kid": kid})
    return json.dumps({"keys": entries}).encode()


class Served(Jwks):
    """A JWKS whose document comes from the test in place of the network."""

    def __init__(self, body: Any, clock: Any) -> None:
        super().__init__(url="https://issuer.example/keys", clock=clock)
        self.body = body
        self.fetches = 0

    async def _fetch(self) -> None:
        self.fetches += 1
        if self.body is not None:
            self._accept(self.body)


@pytest.fixture
def clock() -> Any:
    return [1000.0]


@pytest.fixture
def served(clock: Any) -> Any:
    return Served(document(a=ed25519.Ed25519PrivateKey.generate()), lambda: clock[0])


async def test_a_document_is_fetched_once_and_again_after_its_time(served: Any, clock: Any) -> None:
    assert await served.find("a", "EdDSA") is not None
    assert await served.find("a", "EdDSA") is not None
    assert served.fetches == 1
    clock[0] += jwks.TTL_SECONDS
    assert await served.find("a", "EdDSA") is not None
    assert served.fetches == 2


async def test_a_rotated_key_is_found_without_waiting_for_the_time(served: Any, clock: Any) -> None:
    assert await served.find("a", "EdDSA") is not None
    served.body = document(b=ed25519.Ed25519PrivateKey.generate())
    clock[0] += jwks.MIN_REFETCH_SECONDS
    assert await served.find("b", "EdDSA") is not None
    assert await served.find("a", "EdDSA") is None


async def test_unknown_ids_do_not_flood_the_issuer(served: Any, clock: Any) -> None:
    await served.find("a", "EdDSA")
    for number in range(100):
        assert await served.find(f"unknown-{number}", "EdDSA") is None
    assert served.fetches == 1
    clock[0] += jwks.MIN_REFETCH_SECONDS
    for number in range(100):
        assert await served.find(f"unknown-{number}", "EdDSA") is None
    assert served.fetches == 2


async def test_known_keys_outlive_an_issuer_that_is_down(served: Any, clock: Any) -> None:
    await served.find("a", "EdDSA")
    served.body = None
    clock[0] += jwks.TTL_SECONDS * 3
    assert await served.find("a", "EdDSA") is not None


async def test_without_any_document_keys_are_unavailable(clock: Any) -> None:
    with pytest.raises(KeysUnavailableError):
        await Served(None, lambda: clock[0]).find("a", "EdDSA")


async def test_without_an_id_the_choice_must_be_clear(clock: Any) -> None:
    keys = {"a": ec.generate_private_key(ec.SECP256R1()), "b": ec.generate_private_key(ec.SECP256R1())}
    served = Served(document(**keys), lambda: clock[0])
    assert await served.find(None, "ES256") is None
    assert await served.find("b", "ES256") is not None


async def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys = Jwks(path=path)
    with pytest.raises(KeysUnavailableError):
        await keys.find("a", "EdDSA")
    path.write_bytes(document(a=ed25519.Ed25519PrivateKey.generate()))
    assert await keys.find("a", "EdDSA") is not None
    path.write_bytes(document(b=ed25519.Ed25519PrivateKey.generate(), c=ec.generate_private_key(ec.SECP256R1())))
    assert await keys.find("b", "EdDSA") is not None
    path.write_bytes(b"{broken")
    assert await keys.find("b", "EdDSA") is not None, "a broken file does not lock everybody out"
