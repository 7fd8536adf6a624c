"""Each process of a mesh is given the addresses and secrets that it uses, and no others."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import jwt
import pytest

from atelier_cli.embedded.process import Launch, free_ports, spawn
from atelier_cli.errors import CliError
from atelier_cli.folder import DataFolder
from atelier_cli.mesh import MeshPlan, ServiceProcess, choose_ports, chosen_cameras, plan
from atelier_cli.tokens import issue
from meshkit import topology
from meshkit.certificates import SETTINGS

_KNOWS_CAPTURE = "ATELIER_CAPTURE_ADDRESS"
ROLES = {spec.role for spec in topology.SERVICES}
# By setting: which of these services are to know it.
STORERS, WORKERS = {"tasks", "workflows", "training"}, {"worker", "trainer"}
OWNERS = STORERS | {"monitoring"}
KNOWN_TO: Mapping[str, set[str]] = {
    "ATELIER_DATABASE_URL": OWNERS,
    "ATELIER_NATS_URL": OWNERS | WORKERS | {"gateway"},
    "ATELIER_S3_ENDPOINT": STORERS | WORKERS | {"gateway"},
    "ATELIER_S3_ACCESS_KEY": STORERS | WORKERS | {"gateway"},
    "ATELIER_S3_SECRET_KEY": STORERS | WORKERS | {"gateway"},
    "ATELIER_S3_BUCKET": STORERS | WORKERS | {"gateway"},
    "ATELIER_AUTH_SECRET": OWNERS | WORKERS | {"gateway"},
    "ATELIER_TASKS_ADDRESS": {"workflows", "training", "monitoring", "gateway"} | WORKERS,
    "ATELIER_WORKFLOWS_ADDRESS": {"monitoring", "gateway"},
    "ATELIER_TRAINING_ADDRESS": {"workflows", "monitoring", "trainer", "gateway"},
    "ATELIER_MONITORING_ADDRESS": {"gateway"},
    "ATELIER_EVALUATION_ADDRESS": {"monitoring", "gateway"},
}
SERVERS = {"nats", "postgres", "s3"}
# A service that is not among them is held to its entry in the table.
STATED = OWNERS | WORKERS | {"gateway"}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KNOWN_TO:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)


def mesh_on(tmp_path: Path) -> MeshPlan:
    folder = DataFolder(tmp_path / "data")
    folder.make()
    return plan(folder, folder.credentials(), *choose_ports(free_ports(1)[0], None))


def given(launch: Launch) -> dict[str, str]:
    """The environment that a process really gets which is started so."""
    launch.log.unlink(missing_ok=True)
    program = "import json, os; print(json.dumps(dict(os.environ)))"
    asked = replace(launch, argv=(sys.executable, "-c", program), cwd=Path("/"), user=None)
    assert spawn(asked).wait(60) == 0
    environment: dict[str, str] = json.loads(launch.log.read_text())
    return environment


def holders(environments: Mapping[str, Mapping[str, str]], name: str) -> set[str]:
    return {process for process, environment in environments.items() if name in environment and process in STATED}


def environments_of(mesh: MeshPlan) -> dict[str, dict[str, str]]:
    services = {name: server for name, server in mesh.servers.items() if name not in SERVERS}
    return {name: given(server.prepare()) for name, server in services.items()}


def test_each_service_of_an_embedded_mesh_gets_what_it_uses_and_no_more(tmp_path: Path) -> None:
    environments = environments_of(mesh_on(tmp_path))
    assert environments.keys() == ROLES >= STATED
    for name, users in KNOWN_TO.items():
        assert holders(environments, name) == users, name
    for name, environment in environments.items():
        assert environment.keys() & topology.joining_settings() <= topology.by_role(name).uses
        assert environment["ATELIER_LISTEN"]
        assert environment["PATH"], "what is no setting of the mesh is inherited"


def test_what_the_user_names_reaches_those_alone_that_use_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known_to = {
        **KNOWN_TO,
        "ATELIER_S3_SECRET_KEY_FILE": KNOWN_TO["ATELIER_S3_SECRET_KEY"],
        "ATELIER_DATABASE_URL_FILE": KNOWN_TO["ATELIER_DATABASE_URL"],
        "ATELIER_WORKER_TOKEN": WORKERS,
        "ATELIER_MEDIA_SECRET": {"gateway", "tasks", "training"},
        "ATELIER_MODEL": WORKERS,
        "ATELIER_CAPTION_KEY": {"trainer"},
        # No secret, and read by those who know it.
        "ATELIER_LOG_LEVEL": STATED,
    }
    for name in known_to:
        monkeypatch.setenv(name, f"the user's {name}")
    # Where the variable itself is set, its file is not looked at.
    environments = environments_of(mesh_on(tmp_path))
    for name, users in known_to.items():
        assert holders(environments, name) == users, name
    assert environments["tasks"]["ATELIER_DATABASE_URL"] == "the user's ATELIER_DATABASE_URL"


def test_embedded_servers_are_given_nothing_of_the_mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = mesh_on(tmp_path)
    for name in ("ATELIER_AUTH_SECRET", "ATELIER_WORKER_TOKEN", "ATELIER_LOG_LEVEL"):
        monkeypatch.setenv(name, "the user's")
    for name in ("nats", "s3"):
        environment = given(mesh.servers[name].prepare())
        assert [name for name in environment if name.startswith("ATELIER_")] == []
        assert environment["PATH"]


def test_secrets_from_files_are_the_meshs_and_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    secret = " and ".join(["from a file"] * 4)
    Path("secret").write_text(f"{secret}\n")
    Path("dsn").write_text("postgresql://db/atelier\n")
    monkeypatch.setenv("ATELIER_AUTH_SECRET_FILE", "secret")
    monkeypatch.setenv("ATELIER_DATABASE_URL_FILE", "dsn")
    monkeypatch.setenv("ATELIER_AUTH_JWKS_FILE", "keys.json")
    mesh = mesh_on(tmp_path)
    assert "postgres" not in mesh.servers, "the user's is used"
    environments = environments_of(mesh)
    assert {environment["ATELIER_AUTH_SECRET"] for environment in environments.values()} == {secret}
    assert environments["tasks"]["ATELIER_DATABASE_URL"] == Path("dsn").read_text().strip()
    assert environments["gateway"]["ATELIER_AUTH_JWKS_FILE"] == str(tmp_path / "keys.json"), "services stand elsewhere"
    assert holders(environments, "ATELIER_DATABASE_URL_FILE") == KNOWN_TO["ATELIER_DATABASE_URL"]
    token = issue(DataFolder(tmp_path / "data"), tenant="acme", scopes=["read"], ttl_seconds=60)
    assert jwt.decode(token, secret, algorithms=["HS256"])["sub"] == "cli"


def test_files_of_the_certificate_reach_every_service_by_paths_that_hold_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in SETTINGS:
        monkeypatch.setenv(name, f"{name}.pem")
    services = {role: each for role, each in environments_of(mesh_on(tmp_path)).items() if role in ROLES}
    for environment in services.values():
        assert {name: environment[name] for name in SETTINGS} == {
            name: str(tmp_path / f"{name}.pem") for name in SETTINGS
        }
    assert set(services) == ROLES


def test_each_service_has_a_metrics_page_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATELIER_METRICS_PORT", raising=False)
    mesh = mesh_on(tmp_path)
    ports = {name: environment["ATELIER_METRICS_PORT"] for name, environment in environments_of(mesh).items()}
    assert len(set(ports.values())) == len(ROLES)
    assert mesh.pages == {name: f"http://127.0.0.1:{port}/metrics" for name, port in ports.items()}


@pytest.mark.parametrize(
    ("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("10.1.2.3", "10.1.2.3"), ("::1", "[::1]"), ("::", "127.0.0.1")]
)
def test_metrics_page_is_shown_where_the_user_has_it_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, shown: str
) -> None:
    monkeypatch.delenv("ATELIER_METRICS_PORT", raising=False)
    monkeypatch.setenv("ATELIER_METRICS_HOST", host)
    mesh = mesh_on(tmp_path)
    assert mesh.pages["tasks"] == f"http://{shown}:{mesh.ports['metrics_tasks']}/metrics"


@pytest.mark.parametrize("setting", ["ATELIER_METRICS_PORT", "ATELIER_METRICS_PORT_FILE"])
def test_a_metrics_port_that_the_user_names_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.delenv("ATELIER_METRICS_PORT", raising=False)
    (tmp_path / "port").write_text("0\n")
    value = str(tmp_path / "port") if setting.endswith("_FILE") else "0"
    monkeypatch.setenv(setting, value)
    mesh = mesh_on(tmp_path)
    environments = environments_of(mesh)
    assert {environment[setting] for environment in environments.values()} == {value}
    assert setting == "ATELIER_METRICS_PORT" or holders(environments, "ATELIER_METRICS_PORT") == set()
    assert mesh.pages == {}


def test_file_of_a_setting_that_cannot_be_read_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATELIER_NATS_URL_FILE", str(tmp_path / "none"))
    with pytest.raises(CliError, match=r"ATELIER_NATS_URL_FILE names .*none, which cannot be read: No such file"):
        mesh_on(tmp_path)


def test_a_mesh_that_is_told_not_to_train_has_no_trainer_and_still_knows_the_processes_of_one(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.make()
    ports = choose_ports(free_ports(1)[0], None)
    assert plan(folder, folder.credentials(), *ports, trainer=False).servers.keys() & ROLES == ROLES - {"trainer"}
    assert plan(folder, folder.credentials(), *ports).servers.keys() & ROLES == ROLES


def test_the_training_service_is_told_what_the_trainer_trains(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.make()
    ports = choose_ports(free_ports(1)[0], None)
    for trained, told in (((), None), (("garments", "mine"), "garments,mine")):
        servers = plan(folder, folder.credentials(), *ports, trained=trained).servers
        heard = {
            name: server.environment["ATELIER_TRAINED_MODELS"]
            for name, server in servers.items()
            if isinstance(server, ServiceProcess) and "ATELIER_TRAINED_MODELS" in server.environment
        }
        assert heard == ({} if told is None else {"training": told})


def test_a_mesh_with_cameras_captures_and_those_who_ask_know_where(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.make()
    gateway_port, ports = choose_ports(free_ports(1)[0], None)
    environments = environments_of(plan(folder, folder.credentials(), gateway_port, ports, cameras="/cameras"))
    assert environments.keys() == {*ROLES, "capture"}
    assert environments["capture"]["ATELIER_CAMERA_ROOT"] == "/cameras"
    address = environments["capture"]["ATELIER_LISTEN"]
    holding = {name: one[_KNOWS_CAPTURE] for name, one in environments.items() if _KNOWS_CAPTURE in one}
    assert holding == {"gateway": address, "monitoring": address}
    assert all("ATELIER_CAMERA_ROOT" not in one for name, one in environments.items() if name != "capture")
    without = environments_of(plan(folder, folder.credentials(), gateway_port, ports))
    assert all(_KNOWS_CAPTURE not in one for one in without.values())


def test_files_of_capture_are_meant_from_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.make()
    (tmp_path / "packshot.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATELIER_CAPTURE_WORKFLOW", "packshot.yaml")
    monkeypatch.setenv("ATELIER_CAPTURE_RULES", "guard")
    ports = choose_ports(free_ports(1)[0], None)
    environments = environments_of(plan(folder, folder.credentials(), *ports, cameras="/cameras"))
    assert environments["capture"]["ATELIER_CAPTURE_WORKFLOW"] == str(tmp_path / "packshot.yaml")
    assert environments["capture"]["ATELIER_CAPTURE_RULES"] == "guard"


def test_the_folder_of_cameras_is_named_by_whoever_starts_the_mesh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ATELIER_CAMERA_ROOT", raising=False)
    assert chosen_cameras(None) == ""
    (tmp_path / "named").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "named")
    assert chosen_cameras(tmp_path / "link") == str(tmp_path / "named")
    monkeypatch.setenv("ATELIER_CAMERA_ROOT", str(tmp_path / "named"))
    assert chosen_cameras(None) == str(tmp_path / "named")
    with pytest.raises(CliError, match="is no folder"):
        chosen_cameras(tmp_path / "missing")
