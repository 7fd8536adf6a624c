"""The bill of materials of an image names what the `Dockerfile` and `requirements.lock` put into it, and no more."""

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from scripts import sbom
from tests.unit.kubernetes.manifests import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
FACTS = sbom.ImageFacts("docker.io/library/python:3.11-slim", "device", ("libgomp1",))


def of_type(found: dict[str, Any], prefix: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in found["components"] if one["purl"].startswith(f"pkg:{prefix}/")}


def test_the_dockerfile_tells_the_package_set_of_each_image() -> None:
    sets = {target: sbom.facts(DOCKERFILE, target) for target in sbom.TARGETS}
    assert {target: one.package_set for target, one in sets.items()} == {
        "control-plane": "control-plane",
        "providers": "providers",
        "inference": "device",
        "training": "device",
    }
    assert sets["inference"].debian == ("libgomp1",)
    assert sets["control-plane"].debian == ()
    [base] = {one.base for one in sets.values()}
    assert f"ARG PYTHON={base}\n" in DOCKERFILE
    with pytest.raises(sbom.BillError):
        sbom.facts(DOCKERFILE, "builder")


def test_each_pinned_package_is_named_once_with_its_release_and_the_licence_it_declares() -> None:
    packages = sbom.pinned(LOCK)
    assert len(packages) == len(LOCK), "every line is read"
    found = sbom.bill("inference", "1.2.3", FACTS, packages)
    named = of_type(found, "pypi")
    assert {f"{one['name']}=={one['version']}" for one in named.values()} == {line.partition(" ")[0] for line in LOCK}
    assert len(found["components"]) == len(LOCK) + 2, "and the base, and what Debian has"
    for name, one in named.items():
        assert one["purl"] == one["bom-ref"] == f"pkg:pypi/{name}@{packages[name]}"
        assert one["type"] == "library"
    assert named["structlog"]["licenses"] == [{"expression": metadata.metadata("structlog")["License-Expression"]}]
    assert named["rich"]["licenses"] == [{"license": {"name": "MIT"}}]
    assert named["jinja2"]["licenses"] == [{"license": {"name": "BSD License"}}], "by its classifier"


def test_the_bill_is_of_one_image_and_the_same_each_time() -> None:
    packages = {"rich": "15.0.0"}
    found = sbom.bill("inference", "1.2.3", FACTS, packages)
    assert (found["bomFormat"], found["specVersion"], found["version"]) == ("CycloneDX", "1.6", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", found["serialNumber"])
    assert found["metadata"]["component"]["name"] == "atelier/inference"
    assert of_type(found, "docker")["docker.io/library/python"]["purl"] == "pkg:docker/library/python@3.11-slim"
    assert list(of_type(found, "deb")) == ["libgomp1"]
    assert found == sbom.bill("inference", "1.2.3", FACTS, dict(packages))
    assert found["serialNumber"] != sbom.bill("inference", "1.2.4", FACTS, packages)["serialNumber"]


def test_a_licence_of_another_release_is_not_told() -> None:
    found = sbom.bill("inference", "1.2.3", FACTS, {"rich": "0.0.1", "no-such-package": "1.0"})
    assert all("licenses" not in one for one in of_type(found, "pypi").values())


@pytest.fixture
def resolver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of uv: tells what it is asked, and answers what lies beside it."""
    script = tmp_path / "uv"
    script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncat {tmp_path}/answer\n')
    script.chmod(0o755)
    monkeypatch.setenv("UV", str(script))
    return tmp_path


def test_the_command_writes_the_set_of_the_image(resolver: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [torch] = [line for line in LOCK if line.startswith("torch==")]
    (resolver / "answer").write_text(f"{torch}\n")
    sbom.main(["training"])
    told = json.loads(capsys.readouterr().out)
    assert list(of_type(told, "pypi")) == ["torch"]
    asked = (resolver / "asked").read_text()
    assert "--extra=inference" in asked
    assert "--constraint requirements.lock" in asked


def test_a_package_that_the_lock_does_not_have_is_refused(resolver: Path) -> None:
    (resolver / "answer").write_text("rich==0.0.1\n")
    with pytest.raises(sbom.BillError, match=r"rich==0\.0\.1"):
        sbom.main(["control-plane"])
