"""Settings."""

import pytest
from pydantic import ValidationError

from services.gateway.config import GatewaySettings


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_TASKS_ADDRESS", "tasks:1")
    monkeypatch.setenv("ATELIER_UPSTREAMS", '{"atelier.workflows.v1": "workflows:2"}')
    monkeypatch.setenv("ATELIER_CORS_ORIGINS", "https://a.example, https://b.example")
    settings = GatewaySettings()
    assert settings.addresses() == {"atelier.tasks.v1": "tasks:1", "atelier.workflows.v1": "workflows:2"}
    assert settings.cors_origins == ("https://a.example", "https://b.example")


@pytest.mark.parametrize("options", [{"max_body_bytes": 1}, {"storage_redirect": "maybe"}, {"rpc_timeout_seconds": 0}])
def test_settings_that_cannot_be_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GatewaySettings.model_validate(options)
