"""The images, and the mesh of one host that is made of them."""

import json
import re
from typing import Any

import yaml  # type: ignore[import-untyped]  # ships no types

from meshkit import topology
from meshkit.config import PREFIX
from scripts.settings_page import settings_of
from tests.unit.kubernetes.manifests import OVERLAYS, ROLES, ROOT, containers, overlay, workloads

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
OWN = {name: one for name, one in COMPOSE["services"].items() if one["image"].startswith("atelier/")}
PROCESSES = {ROLES.get(name, name): one for name, one in OWN.items() if name not in ("bucket", "migrations")}
_OPTIONAL = {
    *("ATELIER_MEDIA_SECRET", "ATELIER_MODEL", "ATELIER_WORKER_TOKEN", "ATELIER_CAPTION_KEY", "ATELIER_UPSTREAMS"),
    "ATELIER_CAPTURE_ADDRESS",
}


def targets() -> dict[str, str]:
    """Stages of the Dockerfile: what each starts from."""
    return {name: base for base, name in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)}


def test_every_image_that_is_run_is_a_target() -> None:
    images = {
        container["image"].rpartition(":")[0].rpartition("/")[2]
        for name in OVERLAYS
        for workload in workloads(overlay(name))
        for container in containers(workload)
        if "atelier/" in container["image"]
    }
    assert images <= set(targets())
    assert {one["build"]["target"] for one in OWN.values()} <= set(targets())
    assert all(one["image"] == f"atelier/{one['build']['target']}:0.1.0" for one in OWN.values())


def test_images_start_from_a_pinned_base_and_run_without_root() -> None:
    [base] = re.findall(r"^ARG PYTHON=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"docker\.io/library/python:\d+\.\d+\.\d+-slim-\w+", base)
    stages = DOCKERFILE.split("\nFROM ")
    users = {
        stage.split(" AS ")[1].split()[0]: re.findall(r"^USER (\S+)$", stage, re.MULTILINE) for stage in stages[1:]
    }
    for target in ("control-plane", "providers", "inference", "training"):
        stage = target
        while not users[stage]:
            stage = targets()[stage]
        assert users[stage][-1] == "10001:10001", target


def test_the_control_plane_is_made_of_no_package_of_a_device() -> None:
    copied = dict(re.findall(r"^FROM runtime AS (\S+)\nCOPY --from=(\S+)", DOCKERFILE, re.MULTILINE))
    assert copied["control-plane"] == "control-plane-packages"
    script = (ROOT / "scripts" / "image_requirements.sh").read_text(encoding="utf-8")
    assert "control-plane) ;;" in script, "it takes no extra"


def test_one_host_runs_every_service_and_worker() -> None:
    assert set(PROCESSES) == {spec.role for spec in (*topology.SERVICES, topology.CALLER, *topology.OPTIONAL)}
    for role, one in PROCESSES.items():
        [stage] = [each for each in DOCKERFILE.split("\nFROM ") if f" AS {one['build']['target']}\n" in each]
        [default] = re.findall(r"^CMD (\[.*\])$", stage, re.MULTILINE)
        assert one.get("command", json.loads(default)) == ["python", "-m", topology.by_role(role).module]


def test_each_is_given_settings_that_it_reads_and_no_secret_of_another() -> None:
    for role, one in PROCESSES.items():
        spec, given = topology.by_role(role), set(one["environment"])
        known = {f"{PREFIX}{field.upper()}" for field in settings_of(spec).model_fields} | spec.uses
        assert sorted(given - known) == [], role
        joining = given & topology.joining_settings()
        assert sorted(joining - spec.uses) == [], role
        assert sorted(spec.uses - joining - _OPTIONAL) == [], role
        for name in (*spec.calls, *(each.role for each in topology.routed() if spec.fronts)):
            address = one["environment"][topology.address_setting(name)]
            assert address == f"dns:///{name}:{topology.by_role(name).port}"


def test_only_this_machine_reaches_what_is_published() -> None:
    published = [port for one in COMPOSE["services"].values() for port in one.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    for name, one in OWN.items():
        assert one["read_only"] is True, name
        assert one["cap_drop"] == ["ALL"], name
        assert one["user"] == "10001:10001", name


def test_prometheus_reads_the_page_of_every_process() -> None:
    read = yaml.safe_load((ROOT / "compose" / "prometheus.yml").read_text(encoding="utf-8"))
    job, *later = read["scrape_configs"]
    assert all((ROOT / "ops" / "prometheus" / rules.removeprefix("rules/")).is_file() for rules in read["rule_files"])
    names = {name for name in OWN if name not in ("bucket", "migrations")}
    optional = {name for name in names if "profiles" in OWN[name]}
    assert set(job["static_configs"][0]["targets"]) == {f"{name}:9100" for name in names - optional}
    # One that is not started would be down for ever.
    assert {one["job_name"] for one in later} == optional
    for one in later:
        [found] = one["dns_sd_configs"]
        assert (found["names"], found["port"]) == ([one["job_name"]], 9100)
    assert all(OWN[name]["environment"]["ATELIER_METRICS_PORT"] == "9100" for name in names)


def test_grafana_has_the_dashboards_and_their_source() -> None:
    folder = ROOT / "compose" / "grafana"
    [source] = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text(encoding="utf-8"))["datasources"]
    [provider] = yaml.safe_load((folder / "dashboards" / "atelier.yml").read_text(encoding="utf-8"))["providers"]
    mounts = {inside: path for path, inside, _ in (one.split(":") for one in mounted("grafana"))}
    dashboards = sorted((ROOT / mounts[provider["options"]["path"]]).glob("*.json"))
    assert dashboards
    for path in dashboards:
        panels = json.loads(path.read_text(encoding="utf-8"))["panels"]
        assert {panel["datasource"]["uid"] for panel in panels if "datasource" in panel} <= {source["uid"]}, path.name


def mounted(name: str) -> list[str]:
    """What a server is given of this repository."""
    volumes = COMPOSE["services"][name]["volumes"]
    found = [one for one in volumes if one.startswith("./")]
    assert all((ROOT / one.split(":")[0]).exists() for one in found)
    return found


def test_what_images_copy_is_let_through() -> None:
    let = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert let[0] == "*"
    packages = {"atelier_cli", "gen", "meshkit", "modelkit", "models", "services"}
    assert packages <= {line.removeprefix("!") for line in let}
    assert all((ROOT / line.removeprefix("!")).exists() for line in let if line.startswith("!"))
