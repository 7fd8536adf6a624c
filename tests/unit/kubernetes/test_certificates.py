"""The components for mutual TLS: certificates bear the names by which services are called, and pods hold their own."""

import datetime as dt
import fnmatch
import re

import pytest

from meshkit import topology
from meshkit.certificates import SETTINGS
from meshkit.config import PREFIX
from services.monitoring.marker.config import MarkerSettings
from tests.unit.kubernetes.manifests import (
    Document,
    called,
    containers,
    environment,
    named,
    of_kind,
    overlay,
    pod,
    role,
    services,
    with_components,
)
from tests.unit.kubernetes.test_network import Policies, labels_of

_CAPTURE = ("mtls", "mtls-authority", "capture", "capture-mtls")
_SCALED = ("mtls", "mtls-authority", "autoscaling", "autoscaling-providers", "autoscaling-mtls")


def scaled() -> list[Document]:
    return with_components(*_SCALED)


every_made = pytest.mark.parametrize("made", ["production", "scaled", "capture"])


def documents_of(made: str) -> list[Document]:
    combined = {"scaled": _SCALED, "capture": _CAPTURE}
    return with_components(*combined[made]) if made in combined else overlay(made)


def secret_of(workload: Document) -> str:
    """The Secret whose certificate a pod holds."""
    [volume] = [one for one in pod(workload)["volumes"] if one["name"] == "certificate"]
    [source] = volume["projected"]["sources"]
    assert volume["projected"]["defaultMode"] == 0o440
    return str(source["secret"]["name"])


def names_of(documents: list[Document], secret: str) -> list[str]:
    [certificate] = [one for one in of_kind(documents, "Certificate") if one["spec"]["secretName"] == secret]
    names: list[str] = certificate["spec"]["dnsNames"]
    return names


def seconds(duration: str) -> float:
    match = re.fullmatch(r"(\d+)h", duration)
    assert match, duration
    return dt.timedelta(hours=int(match[1])).total_seconds()


@every_made
def test_every_pod_of_the_mesh_holds_a_certificate_of_its_own_where_its_settings_say(made: str) -> None:
    documents = documents_of(made)
    held = [secret_of(one) for one in services(documents)]
    assert len(set(held)) == len(held)
    for one in services(documents):
        values = environment(documents, one)
        [container] = containers(one)
        [mount] = [each for each in container["volumeMounts"] if each["name"] == "certificate"]
        assert mount["readOnly"] is True
        files = ("tls.crt", "tls.key", "ca.crt")
        assert [values[setting] for setting in SETTINGS] == [f"{mount['mountPath']}/{name}" for name in files]
        assert names_of(documents, secret_of(one)), called(one)


@every_made
def test_a_certificate_bears_the_names_by_which_its_service_is_called(made: str) -> None:
    documents = documents_of(made)
    told = set()
    for caller in services(documents):
        for setting, address in environment(documents, caller).items():
            match = re.fullmatch(r"ATELIER_([A-Z]+)_ADDRESS", setting)
            if match is None:
                continue
            called_role = match[1].lower()
            host = address.removeprefix("dns:///").rpartition(":")[0]
            [target] = [one for one in services(documents) if role(one) == called_role]
            names = names_of(documents, secret_of(target))
            assert host in names, f"{called(caller)} calls {host}"
            replica = f"10-0-0-1.{host}.atelier.svc.cluster.local"
            assert any(fnmatch.fnmatchcase(replica, name) for name in names)
            assert f"{host}.atelier.svc.cluster.local" in names
            told.add(called_role)
    there = {role(one) for one in services(documents)}
    assert told == {spec.role for spec in topology.routable() if spec.role in there}
    every = [name for one in services(documents) for name in names_of(documents, secret_of(one))]
    assert len(every) == len(set(every)), "no other can prove the name of a service"


@every_made
def test_certificates_are_for_both_sides_and_renewed_long_before_they_end(made: str) -> None:
    for one in of_kind(documents_of(made), "Certificate"):
        spec = one["spec"]
        assert 0 < seconds(spec["renewBefore"]) < seconds(spec["duration"])
        if spec.get("isCA"):
            continue
        assert spec["usages"] == ["server auth", "client auth"]
        assert spec["privateKey"]["rotationPolicy"] == "Always"
        assert spec["issuerRef"] == {"group": "cert-manager.io", "kind": "Issuer", "name": "atelier"}


def test_the_mesh_s_own_authority_is_the_issuer_that_certificates_name() -> None:
    documents = scaled()
    authority = named(documents, "Issuer", "atelier")["spec"]["ca"]["secretName"]
    [root] = [one for one in of_kind(documents, "Certificate") if one["spec"].get("isCA")]
    assert root["spec"]["secretName"] == authority
    assert named(documents, "Issuer", root["spec"]["issuerRef"]["name"])["spec"] == {"selfSigned": {}}
    assert authority not in {secret_of(one) for one in services(documents)}, "its key is in no pod"


@every_made
def test_probes_ask_a_port_in_plain_text_that_no_pod_reaches(made: str) -> None:
    documents = documents_of(made)
    policies = Policies(documents)
    everyone = [labels_of(one) for one in services(documents)]
    for one in services(documents):
        if topology.by_role(role(one)).fronts:
            continue
        values = environment(documents, one)
        [container] = containers(one)
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert values["ATELIER_HEALTH_LISTEN"] == f"0.0.0.0:{ports['health']}"
        probes = [container[kind] for kind in ("startupProbe", "livenessProbe", "readinessProbe") if kind in container]
        assert {probe["grpc"]["port"] for probe in probes} == {ports["health"]}
        assert not any(policies.allows("Ingress", labels_of(one), caller, ports["health"]) for caller in everyone)


def test_keda_and_the_scaler_know_each_other_by_certificates() -> None:
    documents = scaled()
    authentication = named(documents, "TriggerAuthentication", "scaler")
    [certificate] = {reference["name"] for reference in authentication["spec"]["secretTargetRef"]}
    assert names_of(documents, certificate)
    keys = {one["parameter"]: one["key"] for one in authentication["spec"]["secretTargetRef"]}
    assert keys == {"caCert": "ca.crt", "tlsClientCert": "tls.crt", "tlsClientKey": "tls.key"}
    scaling = of_kind(documents, "ScaledObject", "ScaledJob")
    assert {one["metadata"]["name"] for one in scaling} == {"inference", "providers", "trainer"}
    monitoring = named(documents, "Deployment", "monitoring")
    for one in scaling:
        for trigger in one["spec"]["triggers"]:
            assert trigger["authenticationRef"] == {"name": "scaler"}
            assert trigger["metadata"]["enableTLS"] == "true"
            host = trigger["metadata"]["scalerAddress"].rpartition(":")[0]
            assert host in names_of(documents, secret_of(monitoring))
    values = environment(documents, monitoring)
    scaler = [values[f"ATELIER_SCALER_{name}"] for name in ("CERTIFICATE", "KEY", "CLIENT_CA")]
    assert scaler == [values[setting] for setting in SETTINGS]


def test_jobs_of_trainings_and_the_marker_hold_certificates_too() -> None:
    documents = scaled()
    template = named(documents, "ScaledJob", "trainer")["spec"]["jobTargetRef"]["template"]
    job = {"kind": "Job", "metadata": {"name": "trainer"}, "spec": {"template": template}}
    assert names_of(documents, secret_of(job)) == ["trainer.atelier"]
    assert environment(documents, job).keys() >= {*SETTINGS, "ATELIER_HEALTH_LISTEN"}
    marker = environment(documents, named(documents, "Deployment", "marker"))
    assert {name.removesuffix("_FILE") for name in marker} <= {
        f"{PREFIX}{name.upper()}" for name in MarkerSettings.model_fields
    }
