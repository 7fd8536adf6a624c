"""The data folder keeps secrets to their owner and takes one supervisor at a time."""

import stat
from pathlib import Path

import pytest

from atelier_cli.embedded.process import free_ports
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.folder import DataFolder, MeshRecord, ProcessRecord
from atelier_cli.mesh import choose_ports, plan


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "mesh")
    folder.make()
    return folder


def test_credentials_are_private_and_stay(folder: DataFolder) -> None:
    first = folder.credentials()
    assert folder.credentials() == first
    assert stat.S_IMODE((folder / "credentials.json").stat().st_mode) == 0o600
    assert len(set(first.__dataclass_fields__)) == 5
    assert len({getattr(first, name) for name in first.__dataclass_fields__}) == 5


def test_folder_without_a_mesh_is_told(tmp_path: Path) -> None:
    empty = DataFolder(tmp_path)
    for ask in (empty.running, empty.existing_credentials):
        with pytest.raises(CliError) as caught:
            ask()
        assert caught.value.code is ExitCode.NOT_RUNNING


def test_second_supervisor_is_refused_until_the_first_lets_go(folder: DataFolder) -> None:
    with folder.held():
        folder.write_record(MeshRecord(1234, "ready", 9000))
        assert folder.is_running()
        with pytest.raises(CliError, match=r"already runs .* http://127.0.0.1:9000 \(process 1234\)"), folder.held():
            pass
    assert not folder.is_running()
    with folder.held():
        pass


def test_record_is_read_as_written(folder: DataFolder) -> None:
    record = MeshRecord(
        1,
        "ready",
        9000,
        {"nats": 4222},
        (ProcessRecord("nats", "nats", 7, 2), ProcessRecord("tasks", "tasks", 8, 0, "http://127.0.0.1:9/metrics")),
    )
    folder.write_record(record)
    assert folder.record() == record


def test_record_of_an_earlier_release_is_read(folder: DataFolder) -> None:
    process = '{"name": "nats", "role": "nats", "pid": 7, "restarts": 2}'
    (folder / "mesh.json").write_text(
        f'{{"pid": 1, "state": "ready", "gateway_port": 9000, "ports": {{"tasks": 9101}}, "processes": [{process}]}}'
    )
    record = folder.record()
    assert record is not None
    assert record.processes == (ProcessRecord("nats", "nats", 7, 2, None),)
    gateway, ports = choose_ports(free_ports(1)[0], record)
    assert plan(folder, folder.credentials(), gateway, ports).pages.keys() == {
        "tasks",
        "workflows",
        "training",
        "monitoring",
        "evaluation",
        "worker",
        "trainer",
        "gateway",
    }


def test_ports_are_kept_over_restarts_where_they_are_free(folder: DataFolder) -> None:
    wanted = free_ports(1)[0]
    gateway, ports = choose_ports(wanted, None)
    again = choose_ports(None, MeshRecord(1, "stopped", gateway, ports))
    assert again == (gateway, ports)
    assert len({gateway, *ports.values()}) == 1 + len(ports)


def test_every_role_is_planned_and_an_external_server_is_left_out(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, ports = choose_ports(free_ports(1)[0], None)
    mesh = plan(folder, folder.credentials(), gateway, ports)
    assert set(mesh.servers) == {
        *("postgres", "nats", "s3"),
        *("tasks", "workflows", "training", "monitoring", "evaluation", "worker", "trainer", "gateway"),
    }
    monkeypatch.setenv("ATELIER_DATABASE_URL", "postgresql://elsewhere/atelier")
    mesh = plan(folder, folder.credentials(), gateway, ports)
    assert "postgres" not in mesh.servers
    launch = mesh.servers["tasks"].prepare()
    assert launch.env["ATELIER_DATABASE_URL"] == "postgresql://elsewhere/atelier"


def test_external_store_without_keys_is_told(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_S3_ENDPOINT", "store:9000")
    gateway, ports = choose_ports(free_ports(1)[0], None)
    with pytest.raises(CliError, match="ATELIER_S3_ACCESS_KEY has to be set"):
        plan(folder, folder.credentials(), gateway, ports)
