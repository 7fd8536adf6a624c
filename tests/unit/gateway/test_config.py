"""Settings."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from meshkit import topology
from services.gateway.config import GatewaySettings


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_TASKS_ADDRESS", "tasks:1")
    monkeypatch.setenv("ATELIER_UPSTREAMS", '{"atelier.workflows.v1": "workflows:2"}')
    monkeypatch.setenv("ATELIER_CORS_ORIGINS", "https://a.example, https://b.example")
    settings = GatewaySettings()
    assert settings.packages() == {"atelier.tasks.v1", "atelier.workflows.v1"}
    assert settings.address_of("atelier.tasks.v1.JobsService") == "tasks:1"
    assert settings.address_of("atelier.workflows.v1.WorkflowsService") == "workflows:2"
    assert settings.probed() == {"tasks": ("tasks:1", ""), "workflows": ("workflows:2", "")}
    assert settings.cors_origins == ("https://a.example", "https://b.example")


def test_a_service_without_an_address_is_not_served_but_tasks_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in topology.routable():
        monkeypatch.delenv(topology.address_setting(spec.role), raising=False)
    settings = GatewaySettings()
    assert settings.packages() == {"atelier.tasks.v1"}
    assert settings.address_of("atelier.tasks.v1.TasksService") == topology.TASKS.address
    assert not settings.address_of("atelier.training.v1.TrainingService")


def test_services_of_one_package_may_have_addresses_of_their_own() -> None:
    settings = GatewaySettings(addresses={"monitoring": "monitoring:4", "capture": "capture:6"})
    assert settings.packages() == {"atelier.monitoring.v1"}
    assert settings.address_of("atelier.monitoring.v1.SystemService") == "monitoring:4"
    assert settings.address_of("atelier.monitoring.v1.PhotoService") == "capture:6"
    alone = GatewaySettings(addresses={"monitoring": "monitoring:4"})
    assert not alone.address_of("atelier.monitoring.v1.PhotoService"), "a mesh without cameras has no routes for them"
    assert alone.probed() == {"monitoring": ("monitoring:4", "")}


def test_addresses_may_come_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "address").write_text("workflows:3\n")
    monkeypatch.setenv("ATELIER_WORKFLOWS_ADDRESS_FILE", str(tmp_path / "address"))
    assert GatewaySettings().address_of("atelier.workflows.v1.WorkflowsService") == "workflows:3"


@pytest.mark.parametrize("options", [{"max_body_bytes": 1}, {"storage_redirect": "maybe"}, {"rpc_timeout_seconds": 0}])
def test_settings_that_cannot_be_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GatewaySettings.model_validate(options)


@pytest.mark.parametrize("origin", ["https://a.example/", "HTTPS://A.example", "https://a.example"])
def test_an_origin_is_taken_as_people_write_it(origin: str) -> None:
    assert GatewaySettings(cors_origins=origin).cors_origins == ("https://a.example",)


@pytest.mark.parametrize("origin", ["a.example", "https://a.example/app", "https://", "null", "https://u@a.example"])
def test_what_is_no_origin_stops_the_start(origin: str) -> None:
    with pytest.raises(ValidationError, match="is no origin"):
        GatewaySettings(cors_origins=("https://b.example", origin))
