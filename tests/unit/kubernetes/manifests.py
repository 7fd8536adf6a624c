"""The manifests as kustomize builds them, and what checks ask of them."""

import functools
import os
import re
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # ships no types

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "k8s"
OVERLAYS = ("local", "gpu", "production")
# What is built for the tests beside the overlays: components on the base.
COMBINED = {"capture": ("capture",)}
BUILDS = (*OVERLAYS, *COMBINED)
# Manifests' names of what the table of services calls otherwise.
ROLES = {"inference": "worker"}
_UNITS = {"": 1.0, "m": 1e-3, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}

Document = dict[str, Any]


def build(folder: Path) -> list[Document]:
    """Build a folder by the pinned kustomize."""
    kubectl = Path(sysconfig.get_path("scripts")) / "kubectl"
    built = subprocess.run([kubectl, "kustomize", folder], check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return [document for document in yaml.safe_load_all(built.stdout) if document]


@functools.cache
def overlay(name: str) -> list[Document]:
    """An overlay, or what is combined under this name; built once."""
    return with_components(*COMBINED[name]) if name in COMBINED else build(FOLDER / "overlays" / name)


@functools.cache
def with_components(*names: str) -> list[Document]:
    """The base with components, and with the image of trainers from a registry of its own; built once."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        base, *chosen = (os.path.relpath(FOLDER / one, folder) for one in ("base", *(f"components/{c}" for c in names)))
        image = "{name: atelier/training, newName: registry.example.com/atelier/training, newTag: '9'}"
        (folder / "kustomization.yaml").write_text(
            f"kind: Kustomization\nnamespace: atelier\nresources: [{base}]\ncomponents: [{', '.join(chosen)}]\n"
            f"images: [{image}]\n"
        )
        return build(folder)


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    return [one for one in documents if one["kind"] in kinds]


def named(documents: list[Document], kind: str, name: str) -> Document:
    [found] = [one for one in of_kind(documents, kind) if one["metadata"]["name"] == name]
    return found


def workloads(documents: list[Document]) -> list[Document]:
    return of_kind(documents, "Deployment", "StatefulSet", "DaemonSet", "Job")


def services(documents: list[Document]) -> list[Document]:
    """The Deployments of the mesh: a service or a worker each."""
    return of_kind(documents, "Deployment")


def role(deployment: Document) -> str:
    name = str(deployment["metadata"]["name"])
    return ROLES.get(name, name)


def pod(workload: Document) -> Document:
    spec: Document = workload["spec"]["template"]["spec"]
    return spec


def containers(workload: Document) -> list[Document]:
    return [*pod(workload).get("initContainers", []), *pod(workload)["containers"]]


def called(document: Document) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def environment(documents: list[Document], workload: Document) -> dict[str, str]:
    """What a workload's process finds in its environment: Secrets as empty, and nothing of what may be absent."""
    [container] = pod(workload)["containers"]
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source and not source["configMapRef"].get("optional"):
            found |= named(documents, "ConfigMap", source["configMapRef"]["name"])["data"]
    return found | {one["name"]: one.get("value", "") for one in container.get("env", [])}


def amount(quantity: str) -> float:
    """A quantity of Kubernetes as a number."""
    match = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(quantity))
    assert match, quantity
    return float(match[1]) * _UNITS[match[2]]


def references(documents: list[Document]) -> Iterator[tuple[str, str, str]]:
    """Who refers to what: workload, kind, name; what may be absent is left out."""
    for workload in workloads(documents):
        who, spec = called(workload), pod(workload)
        yield who, "ServiceAccount", spec["serviceAccountName"]
        yield who, "PriorityClass", spec["priorityClassName"]
        claims = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
        volumes = {one["name"]: one for one in spec.get("volumes", [])}
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                yield who, "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
            for source in volume.get("projected", {}).get("sources", []):
                yield who, "Secret", source["secret"]["name"]
        for container in containers(workload):
            for mount in container.get("volumeMounts", []):
                assert mount["name"] in {*volumes, *claims}, f"{who} mounts {mount['name']}"
            yield from ((who, kind, name) for kind, name in _of_environment(container))


def _of_environment(container: Document) -> Iterator[tuple[str, str]]:
    for source in container.get("envFrom", []):
        for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            if key in source and not source[key].get("optional"):
                yield kind, source[key]["name"]
    for one in container.get("env", []):
        if "secretKeyRef" in one.get("valueFrom", {}):
            yield "Secret", one["valueFrom"]["secretKeyRef"]["name"]


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, "expressions are not read here"
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
