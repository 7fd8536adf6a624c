"""A worker that calls providers is started where there is a credential, and it alone is given that."""

import json
from pathlib import Path

import pytest

from atelier_cli.embedded.process import free_ports
from atelier_cli.errors import CliError
from atelier_cli.folder import DataFolder, MeshRecord
from atelier_cli.mesh import MeshPlan, choose_ports, plan, uses
from atelier_cli.providers import chosen_providers, credentials_of_providers
from meshkit.accounts import CREDENTIALS
from meshkit.catalog import OWN_PROVIDERS, PROVIDERS
from services.inference import providers
from services.inference.config import InferenceSettings


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *credentials_of_providers(),
        "ATELIER_WORKER_PROVIDERS",
        "ATELIER_SERVED_PROVIDERS",
        "ATELIER_ULTIMATE_EDITOR",
        "ATELIER_EVALUATION_PROVIDERS",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)


def mesh_on(tmp_path: Path, providers: tuple[str, ...]) -> MeshPlan:
    folder = DataFolder(tmp_path / "data")
    folder.make()
    return plan(folder, folder.credentials(), *choose_ports(free_ports(1)[0], None), providers)


def test_credentials_that_the_contract_names_are_settings_of_the_worker() -> None:
    known = InferenceSettings.model_fields
    assert [name for names in CREDENTIALS.values() for name in names if name not in known] == []
    assert (CREDENTIALS.keys(), CREDENTIALS["LOCAL"]) == (PROVIDERS.keys(), ())


def test_the_worker_calls_every_provider_that_a_credential_brings() -> None:
    # It does not start where it knows one of them not, and `atelier up` with it.
    assert providers.parse_providers([name for name, names in CREDENTIALS.items() if names])


def test_a_mesh_without_a_credential_has_no_worker_that_calls(tmp_path: Path) -> None:
    assert chosen_providers(asked=False) == ()
    assert "providers" not in mesh_on(tmp_path, ()).servers


def test_a_credential_or_its_file_brings_the_providers_that_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("of fal\n")
    monkeypatch.setenv("ATELIER_FAL_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("ATELIER_FASHN_KEY", "of fashn")
    monkeypatch.setenv("ATELIER_FREEPIK_KEY", "")
    assert chosen_providers(asked=False) == (
        "FAL_STANDARD",
        "FAL_SHOOTIFY_REFINER",
        "FAL_GARMENT_FIXER",
        "FASHN_STANDARD",
    )
    monkeypatch.setenv("ATELIER_SERVED_PROVIDERS", "local, fashn_standard")
    assert chosen_providers(asked=False) == ("FASHN_STANDARD",)


def test_pipelines_of_the_device_are_called_where_a_provider_redraws_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pipelines = set(OWN_PROVIDERS) - {"LOCAL"}
    monkeypatch.setenv("ATELIER_FAL_KEY", "of fal")
    for editor, called in (("VERTEX", set()), ("FAL_STANDARD", pipelines), ("LOCAL", set())):
        monkeypatch.setenv("ATELIER_ULTIMATE_EDITOR", editor)
        assert set(chosen_providers(asked=False)) & set(OWN_PROVIDERS) == called


def test_who_asks_for_the_worker_names_whom_it_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        CliError, match=r"No provider is named: set a credential \(ATELIER_ANTHROPIC_KEY, .*or ATELIER_"
    ):
        chosen_providers(asked=True)
    monkeypatch.setenv("ATELIER_SERVED_PROVIDERS", "LOCAL,AI_CORE")  # by an Ollama at its usual address
    assert chosen_providers(asked=True) == ("AI_CORE",)
    assert chosen_providers(asked=False) == ()
    monkeypatch.delenv("ATELIER_SERVED_PROVIDERS")
    monkeypatch.setenv("ATELIER_FASHN_KEY", "of fashn")
    assert chosen_providers(asked=True) == chosen_providers(asked=False) == ("FASHN_STANDARD",)


def test_a_worker_that_calls_by_itself_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_FASHN_KEY", "of fashn")
    monkeypatch.setenv("ATELIER_WORKER_PROVIDERS", "LOCAL,FASHN_STANDARD")
    assert chosen_providers(asked=False) == ()
    assert uses("worker", "ATELIER_FASHN_KEY")
    with pytest.raises(CliError, match="leave --providers out"):
        chosen_providers(asked=True)


def test_the_worker_that_calls_is_told_whom_and_tasks_may_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATELIER_WORKER_NAME", "studio")
    mesh = mesh_on(tmp_path, ("FASHN_STANDARD", "FREEPIK_MAGNIFIC"))
    environments = {name: server.prepare().env for name, server in mesh.servers.items()}
    assert environments["providers"]["ATELIER_WORKER_PROVIDERS"] == "FASHN_STANDARD,FREEPIK_MAGNIFIC"
    assert environments["providers"]["ATELIER_WORKER_NAME"] == "studio/providers"
    assert environments["worker"]["ATELIER_WORKER_NAME"] == "studio"
    assert "ATELIER_WORKER_PROVIDERS" not in environments["worker"]
    assert environments["tasks"]["ATELIER_SERVED_PROVIDERS"] == ",".join(
        (*OWN_PROVIDERS, "FASHN_STANDARD", "FREEPIK_MAGNIFIC")
    )
    folders = {environments[name]["ATELIER_DATA"] for name in ("worker", "providers")}
    assert len(folders) == 2
    assert all(Path(folder).is_dir() for folder in folders)
    assert mesh.pages["providers"] != mesh.pages["worker"]
    monkeypatch.setenv("ATELIER_SERVED_PROVIDERS", "LOCAL")
    again = mesh_on(tmp_path, ("FASHN_STANDARD",))
    assert "ATELIER_SERVED_PROVIDERS" not in again.servers["tasks"].prepare().env


@pytest.mark.parametrize("name", ["ATELIER_FASHN_KEY", "ATELIER_FAL_KEY_FILE"])
def test_a_credential_is_given_to_nobody_else(name: str) -> None:
    roles = ("tasks", "workflows", "training", "monitoring", "worker", "providers", "gateway")
    assert [role for role in roles if uses(role, name)] == ["providers"]


def test_a_record_remembers_who_is_called() -> None:
    record = MeshRecord(1, "ready", 9000, providers=("FASHN_STANDARD",))
    kept = {"pid": 1, "state": "ready", "gateway_port": 9000, "processes": [], "providers": ["FASHN_STANDARD"]}
    assert MeshRecord.parse(json.loads(json.dumps(kept))) == record
    del kept["providers"]
    assert MeshRecord.parse(kept).providers == ()


def test_the_role_that_evaluates_is_given_the_accounts_of_those_whom_it_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not uses("evaluation", "ATELIER_GEMINI_KEY")
    monkeypatch.setenv("ATELIER_EVALUATION_PROVIDERS", "LOCAL, vertex")
    assert uses("evaluation", "ATELIER_GEMINI_KEY")
    assert uses("evaluation", "ATELIER_GEMINI_KEY_FILE")
    assert not uses("evaluation", "ATELIER_OPENAI_KEY")
    assert not uses("evaluation", "ATELIER_FAL_KEY")
    assert not uses("gateway", "ATELIER_GEMINI_KEY")
