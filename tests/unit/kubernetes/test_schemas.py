"""Every document passes the strict schemas of the oldest and the newest release of Kubernetes that are supported.

Kinds of operators pass those of the operator's own CustomResourceDefinitions.
"""

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml  # type: ignore[import-untyped]  # ships no types

from tests.unit.kubernetes.manifests import FOLDER, OVERLAYS, Document, called, named, overlay, with_components

RELEASES = ("1.30", "1.37")
# What overlays leave to choose.
CHOICES = (
    (
        *("gpu", "model-cache", "mtls", "mtls-authority", "autoscaling", "autoscaling-providers", "warm-hours"),
        *("autoscaling-mtls", "capture", "capture-mtls"),
    ),
    ("tracing", "pod-monitor", "ingress", "rollout-surge", "autoscaling", "autoscaling-prometheus"),
)


def schemas(release: str) -> dict[str, Any]:
    path = Path(__file__).with_name(f"schemas-{release}.json")
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


@functools.cache
def operators() -> dict[str, Any]:
    """Schemas of operators' kinds, by apiVersion and kind."""
    read: dict[str, Any] = schemas("operators")["kinds"]
    return read


def errors(read: dict[str, Any], document: Document) -> list[str]:
    of_operator = operators().get(f"{document['apiVersion']} {document['kind']}")
    if of_operator is not None:
        return [error.message for error in jsonschema_rs.validator_for(of_operator).iter_errors(document)]
    group, _, version = document["apiVersion"].rpartition("/")
    kind = "-".join(part for part in (document["kind"].lower(), group.partition(".")[0], version) if part)
    schema = {**read["kinds"][kind], "definitions": read["definitions"]}
    return [error.message for error in jsonschema_rs.validator_for(schema).iter_errors(document)]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", OVERLAYS)
def test_documents_pass_the_schemas(name: str, release: str) -> None:
    read = schemas(release)
    assert {called(one): wrong for one in overlay(name) if (wrong := errors(read, one))} == {}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("chosen", CHOICES)
def test_what_components_add_and_change_passes_the_schemas(chosen: tuple[str, ...], release: str) -> None:
    read = schemas(release)
    assert {called(one): wrong for one in with_components(*chosen) if (wrong := errors(read, one))} == {}


def test_every_component_is_held_to_the_schemas() -> None:
    chosen = {component for choice in CHOICES for component in choice}
    for name in OVERLAYS:
        listed = yaml.safe_load((FOLDER / "overlays" / name / "kustomization.yaml").read_text(encoding="utf-8"))
        chosen |= {one.rpartition("/")[2] for one in listed.get("components", [])}
    assert {folder.name for folder in (FOLDER / "components").iterdir()} == chosen


def test_the_schemas_of_operators_refuse_what_their_api_servers_would_drop_or_refuse() -> None:
    documents = [*overlay("production"), *with_components(*CHOICES[0])]
    seen = set()
    for one in documents:
        kind = f"{one['apiVersion']} {one['kind']}"
        if kind not in operators() or kind in seen:
            continue
        seen.add(kind)
        unknown = {**one, "spec": {**one["spec"], "misspelt": True}}
        assert errors({}, one) == []
        assert errors({}, unknown), kind
        assert errors({}, {**one, "spec": []}), kind
    assert {kind.rpartition(" ")[2] for kind in seen} >= {
        *("ScaledObject", "ScaledJob", "TriggerAuthentication", "Certificate", "Issuer", "ExternalSecret"),
        *("Gateway", "HTTPRoute", "PodMonitor"),
    }


@pytest.mark.parametrize("release", RELEASES)
def test_the_schemas_refuse_what_is_wrong(release: str) -> None:
    read = schemas(release)
    sound = named(overlay("gpu"), "Deployment", "tasks")
    assert errors(read, sound) == []
    misspelt = json.loads(json.dumps(sound))
    misspelt["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    assert errors(read, misspelt)
    mistyped = json.loads(json.dumps(sound))
    mistyped["spec"]["replicas"] = "two"
    assert errors(read, mistyped)
