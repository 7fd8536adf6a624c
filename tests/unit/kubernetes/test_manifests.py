"""What a validator by schemas lets pass, and would fail or go wrong on a cluster."""

import re
from typing import Any

import pytest

from meshkit import channel, topology
from meshkit.config import PREFIX
from meshkit.health import PROCESS, REPLICA
from scripts.settings_page import settings_of
from tests.unit.kubernetes.manifests import (
    BUILDS,
    OVERLAYS,
    ROOT,
    amount,
    called,
    containers,
    environment,
    named,
    of_kind,
    overlay,
    pod,
    references,
    role,
    selects,
    services,
    workloads,
)

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
# Kinds that belong to no namespace.
_OF_THE_CLUSTER = {"Namespace", "PriorityClass"}
# Joining settings that an installation may do without.
_OPTIONAL = {
    *("ATELIER_MEDIA_SECRET", "ATELIER_MODEL", "ATELIER_WORKER_TOKEN", "ATELIER_CAPTION_KEY", "ATELIER_UPSTREAMS"),
    "ATELIER_CAPTURE_ADDRESS",
    "ATELIER_PROMETHEUS_URL",
}
_HANDLERS = {"httpGet", "grpc", "tcpSocket", "exec"}
every_overlay = pytest.mark.parametrize("name", BUILDS)


@every_overlay
def test_names_are_labels_of_dns_and_unique(name: str) -> None:
    documents = overlay(name)
    identities = [called(one) for one in documents]
    assert len(set(identities)) == len(identities)
    for one in documents:
        assert _NAME.fullmatch(one["metadata"]["name"]), called(one)
        assert len(one["metadata"]["name"]) <= 63
        assert (one["metadata"].get("namespace") == "atelier") != (one["kind"] in _OF_THE_CLUSTER), called(one)
        for container in containers(one) if one in workloads(documents) else []:
            assert all(_NAME.fullmatch(port["name"]) and len(port["name"]) <= 15 for port in container.get("ports", []))


@every_overlay
def test_selectors_meet_the_labels_of_what_they_select(name: str) -> None:
    documents = overlay(name)
    labels = {called(one): one["spec"]["template"]["metadata"]["labels"] for one in workloads(documents)}
    for one in of_kind(documents, "Deployment", "StatefulSet", "DaemonSet"):
        others = [who for who, found in labels.items() if selects(one["spec"]["selector"], found)]
        assert others == [called(one)], "it selects its own pods and no other's"
        for spread in pod(one).get("topologySpreadConstraints", []):
            assert selects(spread["labelSelector"], labels[called(one)])
    for one in of_kind(documents, "Service"):
        assert [who for who, found in labels.items() if selects({"matchLabels": one["spec"]["selector"]}, found)]
    budgets = [one["spec"]["selector"] for one in of_kind(documents, "PodDisruptionBudget")]
    for one in services(documents):
        assert sum(selects(budget, labels[called(one)]) for budget in budgets) == 1, called(one)


@every_overlay
def test_ports_exist_and_are_those_that_the_service_listens_on(name: str) -> None:
    documents = overlay(name)
    for one in services(documents):
        [container] = pod(one)["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        values = environment(documents, one)
        assert all(0 < port < 65536 for port in ports.values())
        listen = values["ATELIER_LISTEN"]
        assert listen == f"0.0.0.0:{ports.get('http') or ports['grpc']}", called(one)
        assert values["ATELIER_METRICS_PORT"] == str(ports["metrics"])
        fixed = topology.by_role(role(one)).port
        assert not fixed or listen.endswith(f":{fixed}")
    for service in of_kind(documents, "Service"):
        [target] = [
            one
            for one in workloads(documents)
            if selects({"matchLabels": service["spec"]["selector"]}, one["spec"]["template"]["metadata"]["labels"])
        ]
        offered = {port["name"] for container in containers(target) for port in container.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= offered


@every_overlay
def test_a_probe_has_one_handler_and_never_asks_for_load(name: str) -> None:
    for one in services(overlay(name)):
        [container] = pod(one)["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container[kind]
            [handler] = _HANDLERS & set(probe)
            if topology.by_role(role(one)).fronts:
                assert probe["httpGet"] == {"path": "/health/live", "port": "http"}
                continue
            ready = kind == "readinessProbe" and not topology.by_role(role(one)).is_worker
            assert handler == "grpc"
            # With certificates a port in plain text answers, which serves nothing else.
            asked = ports.get("health", ports["grpc"])
            assert probe["grpc"] == {"port": asked, "service": REPLICA if ready else PROCESS}, called(one)


@every_overlay
def test_requests_are_within_limits(name: str) -> None:
    for one in workloads(overlay(name)):
        for container in containers(one):
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert {"cpu", "memory", "ephemeral-storage"} <= set(requests), called(one)
            assert {"memory", "ephemeral-storage"} <= set(limits), called(one)
            for resource, limit in limits.items():
                assert amount(requests[resource]) <= amount(limit), f"{called(one)}: {resource}"
        scratch = [one["emptyDir"]["sizeLimit"] for one in pod(one).get("volumes", []) if "emptyDir" in one]
        assert sum(map(amount, scratch)) <= sum(
            amount(container["resources"]["limits"]["ephemeral-storage"]) for container in containers(one)
        ), f"{called(one)} would be evicted before its volumes are full"


@every_overlay
def test_what_pods_refer_to_exists(name: str) -> None:
    documents = overlay(name)
    there = {(one["kind"], one["metadata"]["name"]) for one in documents}
    there |= {("Secret", one["spec"]["target"]["name"]) for one in of_kind(documents, "ExternalSecret")}
    there |= {("Secret", one["spec"]["secretName"]) for one in of_kind(documents, "Certificate")}
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    told = {("Secret", secret) for secret in re.findall(r"^\| `([a-z-]+)` \| `[a-z0-9-]+`", page, re.MULTILINE)}
    told |= {("PersistentVolumeClaim", claim) for claim in re.findall(r"the claim `([a-z-]+)`", page)}
    external = [(who, kind, what) for who, kind, what in references(documents) if (kind, what) not in there]
    assert [one for one in external if one[1:] not in told] == []
    if of_kind(documents, "ExternalSecret"):
        assert external == [], "with the operator no Secret is made by hand"


@every_overlay
def test_pods_keep_to_the_restricted_profile(name: str) -> None:
    documents = overlay(name)
    assert named(documents, "Namespace", "atelier")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == (
        "restricted"
    )
    for one in workloads(documents):
        spec, who = pod(one), called(one)
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True, who
        assert context["runAsUser"] > 0, who
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, who
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), who
        assert spec["automountServiceAccountToken"] is False, who
        assert spec["enableServiceLinks"] is False, who
        assert all(
            set(volume) - {"name"} <= {"emptyDir", "projected", "persistentVolumeClaim"}
            for volume in spec.get("volumes", [])
        )
        for container in containers(one):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, who
            assert own["readOnlyRootFilesystem"] is True, who
            assert own["capabilities"] == {"drop": ["ALL"]}, who
            assert set(own) == {"allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities"}, who
            assert not any("hostPort" in port for port in container.get("ports", []))
            image, _, tag = container["image"].rpartition(":")
            assert image, who
            assert tag not in ("", "latest"), who
    for account in of_kind(documents, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


@every_overlay
def test_every_service_and_worker_of_the_mesh_has_a_deployment(name: str) -> None:
    found = {role(one): one for one in services(overlay(name))}
    optional = () if name in OVERLAYS else topology.OPTIONAL
    assert set(found) == {spec.role for spec in (*topology.SERVICES, topology.CALLER, *optional)}
    for one_role, one in found.items():
        [container] = pod(one)["containers"]
        assert container["args"] == ["python", "-m", topology.by_role(one_role).module]


@every_overlay
def test_a_service_is_given_settings_that_it_reads_and_no_secret_of_another(name: str) -> None:
    documents = overlay(name)
    for one in services(documents):
        spec = topology.by_role(role(one))
        given = {variable.removesuffix("_FILE") for variable in environment(documents, one)}
        settings = settings_of(spec)
        known = {f"{PREFIX}{field.upper()}" for field in settings.model_fields} | spec.uses
        assert sorted(given - known) == [], called(one)
        joining = given & topology.joining_settings()
        assert sorted(spec.uses - joining - _OPTIONAL) == [], f"{called(one)} lacks them"
        # The trainer and the worker share a patch that names the model.
        assert sorted(joining - spec.uses) == [], f"{called(one)} has no use for them"


@every_overlay
def test_settings_that_are_given_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = overlay(name)
    for one in services(documents):
        with monkeypatch.context() as patched:
            for variable, value in environment(documents, one).items():
                if not variable.endswith("_FILE"):
                    patched.setenv(variable, value)
            settings: Any = settings_of(topology.by_role(role(one)))()
        grace = pod(one)["terminationGracePeriodSeconds"]
        wait = 10 if "lifecycle" in pod(one)["containers"][0] else 0
        assert wait + settings.shutdown_grace_seconds < grace, called(one)


@every_overlay
def test_files_of_secrets_are_mounted_where_settings_look_for_them(name: str) -> None:
    documents = overlay(name)
    for one in workloads(documents):
        if one["kind"] == "DaemonSet":
            continue
        mounted = {
            f"/run/secrets/atelier/{item['path']}"
            for volume in pod(one).get("volumes", [])
            if volume["name"] == "secrets"
            for source in volume["projected"]["sources"]
            for item in source["secret"]["items"]
        }
        named_files = {value for key, value in environment(documents, one).items() if key.endswith("_FILE")}
        assert named_files == mounted, called(one)


def test_services_that_are_called_are_headless_and_spread_by_their_callers() -> None:
    documents = overlay("production")
    for spec in topology.addressed():
        assert named(documents, "Service", spec.role)["spec"]["clusterIP"] == "None"
        callers = [
            one for one in services(documents) if topology.address_setting(spec.role) in environment(documents, one)
        ]
        assert callers
        for one in callers:
            address = environment(documents, one)[topology.address_setting(spec.role)]
            assert address == f"dns:///{spec.role}:{spec.port}"


def test_a_replica_ends_once_channels_know_the_one_that_replaces_it() -> None:
    options = dict(channel._channel_options("dns:///tasks:9101", 1024, ()))
    known = options["grpc.dns_min_time_between_resolutions_ms"] + options["grpc.max_reconnect_backoff_ms"]
    documents = overlay("production")
    for spec in (*topology.addressed(), topology.GATEWAY):
        deployment = named(documents, "Deployment", spec.role)["spec"]
        assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        assert deployment["minReadySeconds"] * 1000 > known


def test_workers_are_replaced_where_no_gpu_is_free() -> None:
    for one in services(overlay("production")):
        if one["metadata"]["name"] in ("inference", "trainer"):
            assert one["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
            assert containers(one)[0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
