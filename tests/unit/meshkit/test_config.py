import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from meshkit.config import MeshSettings

SECRET = "k" * 32


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ATELIER_"):
            monkeypatch.delenv(name)


def secret_of(settings: MeshSettings) -> str:
    assert settings.auth_secret is not None
    return settings.auth_secret.get_secret_value()


def test_values_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_S3_ENDPOINT", "localhost:8333")
    monkeypatch.setenv("ATELIER_METRICS_PORT", "9464")
    settings = MeshSettings()
    assert (settings.s3_endpoint, settings.metrics_port, settings.max_message_bytes) == ("localhost:8333", 9464, 2**26)


def test_secrets_come_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    monkeypatch.setenv("ATELIER_AUTH_SECRET_FILE", str(tmp_path / "secret"))
    assert secret_of(MeshSettings()) == SECRET


def test_the_environment_wins_over_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("f" * 32)
    monkeypatch.setenv("ATELIER_AUTH_SECRET_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("ATELIER_AUTH_SECRET", SECRET)
    assert secret_of(MeshSettings()) == SECRET


def test_settings_named_file_are_not_taken_for_secret_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ATELIER_PORT_FILE", str(tmp_path / "absent"))
    monkeypatch.setenv("ATELIER_AUTH_JWKS_FILE", str(tmp_path / "absent.json"))
    settings = MeshSettings()
    assert settings.port_file == tmp_path / "absent"
    assert settings.auth_jwks_file == tmp_path / "absent.json"


def test_a_short_secret_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_AUTH_SECRET", "short-of-32-bytes")
    with pytest.raises(ValidationError, match="at least 32 bytes") as refused:
        MeshSettings()
    assert "short-of" not in str(refused.value)


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_FETCH_ALLOW_PRIVATE", "127.0.0.1:8000, 10.0.0.0/8,")
    assert MeshSettings().fetch_allow_private == ("127.0.0.1:8000", "10.0.0.0/8")


def test_an_empty_variable_is_an_absent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_METRICS_PORT", "")
    assert MeshSettings().metrics_port is None


def test_secrets_do_not_show() -> None:
    settings = MeshSettings(auth_secret=SECRET, s3_secret_key="hidden-key", database_url="postgresql://u:pw@h/d")
    for text in (repr(settings), str(settings)):
        assert SECRET not in text
        assert "hidden-key" not in text
        assert "pw" not in text


def test_an_unknown_log_level_is_refused() -> None:
    with pytest.raises(ValidationError, match="log_level"):
        MeshSettings(log_level="loud")
    assert MeshSettings(log_level="DEBUG").log_level == "debug"
