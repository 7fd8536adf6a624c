"""The component `capture`, and its profile on one host: who is told of it, and how the folder of cameras gets there."""

import pytest

from meshkit import topology
from meshkit.topology import CAPTURE
from tests.unit.kubernetes.manifests import Document, containers, environment, named, overlay, pod, services
from tests.unit.kubernetes.test_images import OWN

_SETTING = topology.address_setting(CAPTURE.role)


def capture(documents: list[Document]) -> Document:
    return named(documents, "Deployment", CAPTURE.role)


def test_one_process_sees_the_folder_of_cameras_and_writes_nothing_there() -> None:
    one = capture(overlay("capture"))
    assert (one["spec"]["replicas"], one["spec"]["strategy"]) == (1, {"type": "Recreate"})
    [volume] = [each for each in pod(one)["volumes"] if each["name"] == "cameras"]
    assert volume["persistentVolumeClaim"] == {"claimName": "cameras", "readOnly": True}
    [mount] = [each for each in containers(one)[0]["volumeMounts"] if each["name"] == "cameras"]
    assert mount["readOnly"] is True
    assert environment(overlay("capture"), one)["ATELIER_CAMERA_ROOT"] == mount["mountPath"]


def test_what_an_overlay_sets_besides_may_be_absent() -> None:
    sources = [one["configMapRef"] for one in containers(capture(overlay("capture")))[0]["envFrom"]]
    assert [one for one in sources if one.get("optional")] == [{"name": "capture", "optional": True}]


def test_those_that_may_call_it_are_told_where_it_is_and_only_where_it_is() -> None:
    documents = overlay("capture")
    told = {one["metadata"]["name"]: environment(documents, one).get(_SETTING) for one in services(documents)}
    address = f"dns:///{CAPTURE.role}:{CAPTURE.port}"
    assert {name: found for name, found in told.items() if found} == {"gateway": address, "monitoring": address}
    assert named(documents, "Service", CAPTURE.role)["spec"]["clusterIP"] == "None"
    assert not [one for one in services(overlay("local")) if _SETTING in environment(overlay("local"), one)]


@pytest.mark.parametrize(("name", "roles"), [("local", []), ("capture", [CAPTURE.role])])
def test_migrations_bring_its_schema_up_to_date_where_it_is(name: str, roles: list[str]) -> None:
    [container] = containers(named(overlay(name), "Job", "migrations"))
    assert container["args"] == ["python", "-m", "meshkit.migrations", *roles]


def test_one_host_is_told_of_it_by_the_folder_of_cameras_alone() -> None:
    one = OWN[CAPTURE.role]
    assert one["profiles"] == [CAPTURE.role]
    [folder] = one["volumes"]
    assert folder["source"].startswith("${ATELIER_CAMERA_ROOT:-")
    assert (folder["target"], folder["read_only"]) == (one["environment"]["ATELIER_CAMERA_ROOT"], True)
    assert folder["bind"] == {"create_host_path": False}
    told = {name: each["environment"][_SETTING] for name, each in OWN.items() if _SETTING in each["environment"]}
    address = f"${{ATELIER_CAMERA_ROOT:+dns:///{CAPTURE.role}:{CAPTURE.port}}}"
    assert told == {"gateway": address, "monitoring": address}
