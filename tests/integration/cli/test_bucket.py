"""`atelier up` and the bucket on a store that is not its own."""

import secrets

import pytest

from atelier_cli.bucket import main, make_bucket
from atelier_cli.embedded.process import free_ports
from tests.conftest import S3Store


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch, s3: S3Store) -> str:
    """The name of a bucket that is not there, in an environment that names the store."""
    name = f"missing-{secrets.token_hex(6)}"
    monkeypatch.setenv("ATELIER_S3_ENDPOINT", s3.endpoint)
    monkeypatch.setenv("ATELIER_S3_ACCESS_KEY", s3.access_key)
    monkeypatch.setenv("ATELIER_S3_SECRET_KEY", s3.secret_key)
    monkeypatch.setenv("ATELIER_S3_BUCKET", name)
    return name


def test_a_missing_bucket_is_created_once(name: str, s3: S3Store) -> None:
    assert make_bucket() == f"Created the bucket {name} at {s3.endpoint}."
    assert s3.server.client().bucket_exists(name)
    assert make_bucket() is None
    assert main() == 0


def test_keys_that_may_not_create_it_are_told_with_what_to_do(
    name: str, s3: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATELIER_S3_SECRET_KEY", "another")
    told = make_bucket()
    assert told is not None
    assert f"The bucket {name} at {s3.endpoint} could not be found or created with these keys" in told
    assert "ATELIER_S3_BUCKET" in told
    assert not s3.server.client().bucket_exists(name)
    assert main() == 1, "a job that makes it is tried again"


@pytest.mark.usefixtures("name")
def test_a_store_that_does_not_answer_is_told_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_S3_ENDPOINT", f"127.0.0.1:{free_ports(1)[0]}")
    told = make_bucket()
    assert told is not None
    assert "does not answer" in told


def test_an_endpoint_that_is_an_address_of_a_page_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_S3_ENDPOINT", "http://store.invalid/path")
    told = make_bucket()
    assert told is not None
    assert name in told


def test_the_embedded_store_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATELIER_S3_ENDPOINT", raising=False)
    monkeypatch.delenv("ATELIER_S3_ENDPOINT_FILE", raising=False)
    assert make_bucket() is None
