"""The Prometheus of a mesh: which program it is, what it reads, who is told of it."""

import json
from pathlib import Path

import pytest

from atelier_cli.embedded.process import free_ports
from atelier_cli.embedded.prometheus import MetricsPage, PrometheusServer, chosen_prometheus
from atelier_cli.errors import CliError
from atelier_cli.folder import DataFolder, MeshRecord
from atelier_cli.mesh import MeshPlan, ServiceProcess, choose_ports, plan


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ATELIER_METRICS_PORT", "ATELIER_METRICS_HOST", "ATELIER_PROMETHEUS_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A file that can be run."""
    file = tmp_path / "bin" / "prometheus"
    file.parent.mkdir()
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return file


def test_none_is_chosen_where_none_is_asked_for() -> None:
    assert chosen_prometheus(None, asked=False) == ""


def test_it_is_the_one_on_path_or_the_one_that_is_named(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(program.parent))
    assert chosen_prometheus(None, asked=True) == str(program)
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    # The mesh's processes start in other folders.
    assert chosen_prometheus(Path("bin/prometheus"), asked=False) == str(program)


def test_one_that_is_missing_is_told_with_what_to_install(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(program.parent.parent))
    with pytest.raises(CliError, match=r"apt-get install prometheus.*--prometheus-program"):
        chosen_prometheus(None, asked=True)
    program.chmod(0o644)
    with pytest.raises(CliError, match="is no program that can be run"):
        chosen_prometheus(program, asked=True)


def test_it_is_refused_where_the_user_chose_the_port_of_the_pages(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATELIER_METRICS_PORT", "0")
    with pytest.raises(CliError, match="ATELIER_METRICS_PORT is set"):
        chosen_prometheus(program, asked=True)


def mesh_on(folder: DataFolder, last: MeshRecord | None, prometheus: str = "/bin/prometheus") -> MeshPlan:
    folder.make()
    ports = choose_ports(free_ports(1)[0], last)
    return plan(folder, folder.credentials(), *ports, prometheus=prometheus)


def told(mesh: MeshPlan) -> dict[str, str]:
    services = (server for server in mesh.servers.values() if isinstance(server, ServiceProcess))
    found = {server.name: server.environment.get("ATELIER_PROMETHEUS_URL", "") for server in services}
    return {name: url for name, url in found.items() if url}


def targets(mesh: MeshPlan) -> dict[str, str]:
    """What Prometheus is told to read, by job."""
    server = mesh.servers["prometheus"]
    assert isinstance(server, PrometheusServer)
    server.prepare()
    read = json.loads((server.folder / "targets.json").read_text(encoding="utf-8"))
    return {one["labels"]["job"]: address for one in read for address in one["targets"]}


def test_it_reads_the_page_of_every_service_also_after_ports_have_changed(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    first = mesh_on(folder, None)
    assert {job: f"http://{address}/metrics" for job, address in targets(first).items()} == first.pages
    assert first.pages.keys() >= {"gateway", "tasks", "monitoring", "worker"}
    lost = {name: port for name, port in first.ports.items() if name != "metrics_tasks"}
    second = mesh_on(folder, MeshRecord(1, "stopped", first.gateway_port, lost))
    assert targets(second)["tasks"] == f"127.0.0.1:{second.ports['metrics_tasks']}"
    assert second.ports["prometheus"] == first.ports["prometheus"]


def test_monitoring_alone_is_told_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = DataFolder(tmp_path / "data")
    mesh = mesh_on(folder, None)
    assert told(mesh) == {"monitoring": f"http://127.0.0.1:{mesh.ports['prometheus']}"}
    assert told(mesh_on(folder, None, "")) == {}
    monkeypatch.setenv("ATELIER_PROMETHEUS_URL", "http://elsewhere:9090")
    assert told(mesh_on(folder, None)) == {}, "the user's is inherited as it is"


def test_what_it_keeps_is_bounded_and_it_serves_this_machine_alone(tmp_path: Path) -> None:
    server = PrometheusServer(tmp_path, 9, "/bin/prometheus", [MetricsPage("a", "h:1")], tmp_path / "log")
    arguments = dict(one.partition("=")[::2] for one in server.prepare().argv[1:])
    assert arguments["--storage.tsdb.retention.time"] == "15d"
    assert arguments["--storage.tsdb.retention.size"] == "1GB"
    assert arguments["--web.listen-address"] == "127.0.0.1:9"
    assert not [name for name in arguments if "enable-lifecycle" in name or "admin-api" in name]


def test_the_record_shows_its_address(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.write_record(MeshRecord(1, "ready", 9000, {"prometheus": 4711}, prometheus="/bin/prometheus"))
    record = folder.record()
    assert record is not None
    assert record.prometheus_url == "http://127.0.0.1:4711"
    assert MeshRecord(1, "ready", 9000, {"prometheus": 4711}).prometheus_url is None
