"""Every document passes the strict schemas of the oldest and the newest release of Kubernetes that are supported."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from tests.unit.kubernetes.manifests import OVERLAYS, Document, called, named, overlay

RELEASES = ("1.30", "1.37")
# Kinds of operators, whose schemas come with them.
_OF_OPERATORS = {"ExternalSecret", "Gateway", "HTTPRoute", "PodMonitor"}


def schemas(release: str) -> dict[str, Any]:
    path = Path(__file__).with_name(f"schemas-{release}.json")
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


def errors(read: dict[str, Any], document: Document) -> list[str]:
    group, _, version = document["apiVersion"].rpartition("/")
    kind = "-".join(part for part in (document["kind"].lower(), group.partition(".")[0], version) if part)
    schema = {**read["kinds"][kind], "definitions": read["definitions"]}
    return [error.message for error in jsonschema_rs.validator_for(schema).iter_errors(document)]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", OVERLAYS)
def test_documents_pass_the_schemas(name: str, release: str) -> None:
    read = schemas(release)
    found = {
        called(one): wrong for one in overlay(name) if one["kind"] not in _OF_OPERATORS and (wrong := errors(read, one))
    }
    assert found == {}


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
