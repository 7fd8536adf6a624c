"""Signed media URLs."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.errors import ErrorKind, MeshError
from meshkit.media_urls import MediaSigner


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@given(path=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_token_opens_what_it_was_made_for(path: str) -> None:
    signer = MediaSigner(b"s" * 32, ttl_seconds=60)
    media = signer.open(signer.token("acme", path))
    assert (media.tenant, media.path) == ("acme", path)


def test_a_token_lasts_at_least_as_promised_and_not_much_longer() -> None:
    clock = Clock()
    signer = MediaSigner(b"s" * 32, ttl_seconds=100, clock=clock)
    token = signer.token("acme", "a.png")
    clock.now += 100
    assert signer.open(token).path == "a.png"
    clock.now += 26
    with pytest.raises(MeshError) as caught:
        signer.open(token)
    assert caught.value.kind is ErrorKind.FORBIDDEN


def test_an_address_stays_the_same_for_a_while_so_that_it_is_cached() -> None:
    clock = Clock()
    signer = MediaSigner(b"s" * 32, ttl_seconds=100, clock=clock)
    first = signer.token("acme", "a.png")
    clock.now += 1
    assert signer.token("acme", "a.png") == first


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_changed_token_opens_nothing(at: int, bit: int) -> None:
    signer = MediaSigner(b"s" * 32, ttl_seconds=60)
    token = bytearray(signer.token("acme", "a.png").encode())
    token[at % len(token)] ^= 1 << bit
    changed = token.decode("latin-1")
    opened = None
    with contextlib.suppress(MeshError):
        opened = signer.open(changed)
    # The last character of base64 has bits that mean nothing.
    assert opened is None or (opened.tenant, opened.path) == ("acme", "a.png")


@pytest.mark.parametrize("token", ["", "x", "é", "A" * 22, "=" * 8, "a\nb"])
def test_nonsense_opens_nothing(token: str) -> None:
    with pytest.raises(MeshError) as caught:
        MediaSigner(b"s" * 32, ttl_seconds=60).open(token)
    assert caught.value.kind is ErrorKind.NOT_FOUND


def test_another_meshs_token_opens_nothing() -> None:
    token = MediaSigner(b"a" * 32, ttl_seconds=60).token("acme", "a.png")
    with pytest.raises(MeshError):
        MediaSigner(b"b" * 32, ttl_seconds=60).open(token)
