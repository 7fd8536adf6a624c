import base64
import hmac
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from meshkit import auth
from meshkit.auth import Principal, Revocations, ServiceTokens, TokenIssuer, TokenVerifier
from meshkit.config import MeshSettings
from meshkit.errors import ErrorKind, MeshError
from meshkit.jwks import Jwks

SECRET = "s" * 32


@pytest.fixture(scope="module")
def rsa_key() -> Any:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def ec_key() -> Any:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def ed_key() -> Any:
    return ed25519.Ed25519PrivateKey.generate()


@pytest.fixture
def jwks_file(tmp_path: Path, rsa_key: Any, ec_key: Any, ed_key: Any) -> Any:
    algorithms = jwt.get_algorithm_by_name
    entries = [
        {**json.loads(algorithms("RS256").to_jwk(rsa_key.public_key())), "kid": "rsa", "use": "sig"},
        {**json.loads(algorithms("ES256").to_jwk(ec_key.public_key())), "kid": "ec"},
        {**json.loads(algorithms("EdDSA").to_jwk(ed_key.public_key())), "kid": "ed"},
        {"kty": "oct", "kid": "oct", "k": base64.urlsafe_b64encode(SECRET.encode()).decode()},
        {"kty": "RSA", "kid": "enc", "use": "enc", "n": "AQ", "e": "AQAB"},
    ]
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": entries}))
    return path


def claims(**changes: Any) -> Any:
    now = int(time.time())
    return {"sub": "alice", "tenant": "acme", "scopes": ["read"], "iat": now, "exp": now + 300, **changes}


def signed(key: Any = SECRET, algorithm: Any = "HS256", headers: Any = None, **changes: Any) -> Any:
    body = {name: value for name, value in claims(**changes).items() if value is not None}
    return jwt.encode(body, key, algorithm=algorithm, headers=headers)


def unsigned(header: Any, body: Any, signature: Any = b"") -> Any:
    parts = (json.dumps(header).encode(), json.dumps(body).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


async def refusal(verifier: Any, token: Any) -> Any:
    with pytest.raises(MeshError) as caught:
        await verifier.verify(token)
    assert caught.value.kind is ErrorKind.UNAUTHENTICATED
    return caught.value.reason


async def test_what_the_issuer_signs_the_verifier_takes() -> None:
    token = TokenIssuer(SECRET).issue("worker-1", "", ["worker"], 60, queues=["inference", "training"])
    principal = await TokenVerifier(secret=SECRET).verify(token)
    assert (principal.subject, principal.tenant) == ("worker-1", "")
    assert principal.queues == frozenset({"inference", "training"})
    assert principal.scopes == {"worker"}
    assert len(principal.jti) == 32


@pytest.mark.parametrize(("kid", "algorithm"), [("rsa", "RS256"), ("ec", "ES256"), ("ed", "EdDSA")])
async def test_tokens_of_an_issuer_with_public_keys(
    kid: Any, algorithm: Any, jwks_file: Any, rsa_key: Any, ec_key: Any, ed_key: Any
) -> None:
    key = {"rsa": rsa_key, "ec": ec_key, "ed": ed_key}[kid]
    verifier = TokenVerifier(jwks=Jwks(path=jwks_file))
    assert (await verifier.verify(signed(key, algorithm, {"kid": kid}))).subject == "alice"
    assert (await verifier.verify(signed(key, algorithm))).subject == "alice", "the only key of its kind needs no id"


async def test_alg_none_is_refused(jwks_file: Any) -> None:
    token = unsigned({"alg": "none", "typ": "JWT"}, claims())
    for verifier in (TokenVerifier(secret=SECRET), TokenVerifier(secret=SECRET, jwks=Jwks(path=jwks_file))):
        assert await refusal(verifier, token) in {"TOKEN_INVALID", "TOKEN_KEY_UNKNOWN"}


async def test_a_public_key_is_no_hmac_secret(jwks_file: Any, rsa_key: Any) -> None:
    pem = rsa_key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    head = unsigned({"alg": "HS256", "kid": "rsa"}, claims()).rpartition(".")[0]
    mac = base64.urlsafe_b64encode(hmac.digest(pem, head.encode(), "sha256")).rstrip(b"=").decode()
    for verifier in (TokenVerifier(jwks=Jwks(path=jwks_file)), TokenVerifier(secret=SECRET, jwks=Jwks(path=jwks_file))):
        assert await refusal(verifier, f"{head}.{mac}") == "TOKEN_INVALID"


async def test_a_symmetric_key_in_a_public_document_is_ignored(jwks_file: Any) -> None:
    verifier = TokenVerifier(jwks=Jwks(path=jwks_file))
    assert await refusal(verifier, signed(SECRET, "HS256", {"kid": "oct"})) == "TOKEN_INVALID"


async def test_the_key_decides_the_algorithm(jwks_file: Any, rsa_key: Any) -> None:
    verifier = TokenVerifier(jwks=Jwks(path=jwks_file))
    for algorithm in ("RS512", "PS256", "RS384"):
        assert await refusal(verifier, signed(rsa_key, algorithm, {"kid": "rsa"})) == "TOKEN_KEY_UNKNOWN"
    assert await refusal(TokenVerifier(secret=SECRET), signed(SECRET * 2, "HS512")) == "TOKEN_INVALID"


async def test_a_foreign_key_is_refused(jwks_file: Any) -> None:
    foreign = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    verifier = TokenVerifier(secret=SECRET, jwks=Jwks(path=jwks_file))
    assert await refusal(verifier, signed(foreign, "RS256", {"kid": "rsa"})) == "TOKEN_INVALID"
    assert await refusal(verifier, signed(foreign, "RS256", {"kid": "other"})) == "TOKEN_KEY_UNKNOWN"
    assert await refusal(verifier, signed("f" * 32)) == "TOKEN_INVALID"


async def test_a_changed_claim_breaks_the_signature() -> None:
    head, _, signature = signed().split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims(tenant="other")).encode()).rstrip(b"=").decode()
    assert await refusal(TokenVerifier(secret=SECRET), f"{head}.{body}.{signature}") == "TOKEN_INVALID"


@pytest.mark.parametrize("token", ["", "a.b.c", "abc", "....", "é.é.é", "e30.e30.", "\0", "a" * 100_000])
async def test_rubbish_is_refused(token: Any) -> None:
    assert await refusal(TokenVerifier(secret=SECRET), token) == "TOKEN_INVALID"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"exp": int(time.time()) - 31}, "TOKEN_EXPIRED"),
        ({"exp": None}, "TOKEN_CLAIMS"),
        ({"sub": None}, "TOKEN_CLAIMS"),
        ({"nbf": int(time.time()) + 86_400}, "TOKEN_NOT_YET_VALID"),  # counted from the collection of all tests
        ({"tenant": "../other"}, "TOKEN_CLAIMS"),
        ({"tenant": ".hidden"}, "TOKEN_CLAIMS"),
        ({"tenant": 7}, "TOKEN_CLAIMS"),
        ({"scopes": 7}, "TOKEN_CLAIMS"),
        ({"scopes": [1]}, "TOKEN_CLAIMS"),
        ({"queues": {"a": 1}}, "TOKEN_CLAIMS"),
        ({"exp": "soon"}, "TOKEN_INVALID"),
    ],
)
async def test_claims_that_do_not_hold(change: Any, reason: Any) -> None:
    assert await refusal(TokenVerifier(secret=SECRET), signed(**change)) == reason


async def test_a_clock_half_a_minute_off_is_forgiven() -> None:
    token = signed(exp=int(time.time()) - 10)
    assert (await TokenVerifier(secret=SECRET).verify(token)).subject == "alice"


async def test_issuer_and_audience_are_held_to_where_asked_for() -> None:
    verifier = TokenVerifier(secret=SECRET, issuer="mesh", audience="atelier")
    assert await refusal(verifier, signed(iss="other", aud="atelier")) == "TOKEN_AUDIENCE"
    assert await refusal(verifier, signed(iss="mesh", aud="other")) == "TOKEN_AUDIENCE"
    assert await refusal(verifier, signed(aud="atelier")) == "TOKEN_CLAIMS"
    token = TokenIssuer(SECRET, "mesh", audience="atelier").issue("a", "t", ["read"], 60)
    assert (await verifier.verify(token)).tenant == "t"


async def test_scopes_are_a_list_or_words() -> None:
    verifier = TokenVerifier(secret=SECRET)
    assert (await verifier.verify(signed(scopes="read write bogus"))).scopes == {"read", "write"}
    assert (await verifier.verify(signed(scopes=["read", "write"]))).scopes == {"read", "write"}
    assert (await verifier.verify(signed(scopes=None))).scopes == frozenset()


async def test_a_cached_token_is_checked_again_after_a_minute() -> None:
    clock = [time.time()]
    verifier = TokenVerifier(secret=SECRET, clock=lambda: clock[0])
    token = signed()
    first = await verifier.verify(token)
    clock[0] += 59
    assert await verifier.verify(token) is first
    clock[0] += 2
    assert await verifier.verify(token) is not first


async def test_the_cache_does_not_outlive_the_token() -> None:
    clock = [time.time()]
    verifier = TokenVerifier(secret=SECRET, clock=lambda: clock[0])
    token = signed(exp=int(clock[0]) - 10)
    first = await verifier.verify(token)
    clock[0] += 21
    assert await verifier.verify(token) is not first


async def test_verification_is_done_once_for_a_while() -> None:
    verifier = TokenVerifier(secret=SECRET)
    token = signed()
    first = await verifier.verify(token)
    assert await verifier.verify(token) is first


async def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_CACHE_SIZE", 3)
    verifier = TokenVerifier(secret=SECRET)
    for number in range(5):
        await verifier.verify(signed(sub=str(number)))
    assert len(verifier._cache) == 3


async def test_a_revocation_holds_for_a_cached_token(tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    path.write_text("")
    revoked = Revocations(path)
    verifier = TokenVerifier(secret=SECRET, revoked=revoked)
    token = signed(jti="stolen")
    await verifier.verify(token)
    path.write_text("# comment\nother\nstolen\n")
    revoked._checked = float("-inf")
    assert await refusal(verifier, token) == "TOKEN_REVOKED"
    path.unlink()
    revoked._checked = float("-inf")
    assert await refusal(verifier, token) == "TOKEN_REVOKED", "a file that vanished for a moment frees nobody"


SATISFIES = {
    "read": {"read"},
    "write": {"write"},
    "admin": {"read", "write", "admin"},
    "operator": {"read", "write", "admin", "operator", "support"},
    "support": {"read", "support"},
    "worker": {"worker"},
    "mesh": {"read", "write", "admin", "operator", "support", "worker", "mesh"},
}


@pytest.mark.parametrize("held", sorted(auth.SCOPES))
def test_what_a_scope_satisfies(held: Any) -> None:
    principal = Principal("a", "t", frozenset({held}))
    assert {scope for scope in auth.SCOPES if principal.has(scope)} == SATISFIES[held]


def test_only_a_service_names_a_tenant() -> Any:
    def acting(principal: Any, named: Any = "") -> Any:
        token = auth.enter(principal, named)
        try:
            return auth.acting_tenant()
        finally:
            auth.leave(token)

    assert acting(Principal("a", "acme", frozenset({"operator"})), "other") == "acme"
    assert acting(Principal("s", "", frozenset({"mesh"})), "other") == "other"
    for principal, named in (
        (Principal("s", "", frozenset({"mesh"})), ""),
        (Principal("w", "", frozenset({"worker"})), "other"),
        (Principal("s", "", frozenset({"mesh"})), "../x"),
    ):
        with pytest.raises(MeshError) as caught:
            acting(principal, named)
        assert caught.value.kind is ErrorKind.FORBIDDEN


def test_outside_of_a_call_nobody_acts() -> None:
    for ask in (auth.current, auth.acting_tenant):
        with pytest.raises(MeshError) as caught:
            ask()
        assert caught.value.kind is ErrorKind.UNAUTHENTICATED


def test_the_issuer_refuses_what_no_verifier_would_take() -> None:
    issuer = TokenIssuer(SECRET)
    with pytest.raises(ValueError, match="unknown scope: root"):
        issuer.issue("a", "t", ["root"], 60)
    with pytest.raises(ValueError, match="tenant"):
        issuer.issue("a", "a/b", ["read"], 60)


@pytest.mark.parametrize("tenant", ["a", "acme-1", "A.b_c", "user@host", "0" * 128])
def test_names_of_tenants(tenant: Any) -> None:
    assert auth.valid_tenant(tenant)


@pytest.mark.parametrize("tenant", ["", ".", "..", "a/b", "a\\b", "a b", "é", "a\n", "0" * 129, "-a", "a\0"])
def test_names_that_no_tenant_has(tenant: Any) -> None:
    assert not auth.valid_tenant(tenant)


async def test_a_services_token_is_renewed_before_it_expires() -> None:
    clock = [time.time() - 55]
    tokens = ServiceTokens(
        TokenIssuer(SECRET, clock=lambda: clock[0]), "tasks", ttl_seconds=100, clock=lambda: clock[0]
    )
    first = tokens.token()
    clock[0] += 49
    assert tokens.token() == first
    clock[0] += 2
    second = tokens.token()
    assert second != first
    assert (await TokenVerifier(secret=SECRET).verify(second)).has("mesh")


def test_settings_without_any_key_make_no_verifier() -> None:
    with pytest.raises(ValueError, match="ATELIER_AUTH_SECRET"):
        TokenVerifier.from_settings(MeshSettings())


async def test_settings_make_the_verifier(tmp_path: Path, jwks_file: Any, ed_key: Any) -> None:
    (tmp_path / "revoked").write_text("gone\n")
    settings = MeshSettings(auth_secret=SECRET, auth_jwks_file=jwks_file, auth_revoked_file=tmp_path / "revoked")
    verifier = TokenVerifier.from_settings(settings)
    assert (await verifier.verify(signed())).subject == "alice"
    assert (await verifier.verify(signed(ed_key, "EdDSA", {"kid": "ed"}))).subject == "alice"
    assert await refusal(verifier, signed(jti="gone")) == "TOKEN_REVOKED"


@pytest.mark.parametrize(
    ("changes", "scopes"),
    [
        ({"scopes": ["read", "write"]}, {"read", "write"}),
        ({"scopes": "read write"}, {"read", "write"}),
        ({"scopes": None, "scope": "read write"}, {"read", "write"}),
        ({"scopes": None, "scope": ["read", "write"]}, {"read", "write"}),
        ({"scopes": None, "scp": ["read"]}, {"read"}),
        ({"scopes": None, "scp": "openid read"}, {"read"}),
        ({"scopes": ["read"], "scope": "write", "scp": ["support", "profile"]}, {"read", "write", "support"}),
        ({"scopes": None}, set()),
        ({"scopes": None, "scope": ""}, set()),
    ],
)
async def test_scopes_are_read_from_every_claim_that_names_them(changes: dict[str, Any], scopes: set[str]) -> None:
    assert (await TokenVerifier(secret=SECRET).verify(signed(**changes))).scopes == scopes


@pytest.mark.parametrize("claim", ["scopes", "scope", "scp"])
@pytest.mark.parametrize("value", [7, ["read", 7], {"read": True}])
async def test_a_claim_of_scopes_that_is_none_is_refused(claim: str, value: Any) -> None:
    assert await refusal(TokenVerifier(secret=SECRET), signed(**{claim: value})) == "TOKEN_CLAIMS"
