"""The table of services holds what the code and the contracts hold."""

import importlib
import importlib.util
from collections import Counter
from importlib.resources import files

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from meshkit import auth, topology
from meshkit.topology import DATABASE, GATEWAY, SERVICES, ServiceSpec

ALL = (*SERVICES, *topology.OPTIONAL)
# Every server that has bundled methods serves it.
EVERYWHERE = {"atelier.mesh.v1.BundleService"}


def named_in_contracts() -> set[str]:
    image = FileDescriptorSet.FromString((files("atelier") / "descriptors.binpb").read_bytes())
    return {f"{file.package}.{service.name}" for file in image.file for service in file.service}


def test_every_service_of_the_contracts_is_served_by_one_service_of_the_mesh() -> None:
    assert set(Counter(topology.grpc_services()).values()) == {1}
    assert set(topology.grpc_services()) == named_in_contracts() - EVERYWHERE


def test_what_nobody_of_the_mesh_serves_is_known_as_such() -> None:
    assert topology.is_served("atelier.tasks.v1.TasksService")
    assert not topology.is_served("atelier.tasks.v1.ServiceToCome")
    assert topology.is_served("elsewhere.v1.ThirdService"), "an upstream of another package is its operator's"


@pytest.mark.parametrize("taken", [[one.role for one in ALL], [one.port for one in ALL if one.port]])
def test_no_two_services_share_a_role_or_a_port(taken: list[object]) -> None:
    assert len(set(taken)) == len(taken)


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.role)
def test_an_entry_names_what_there_is(spec: ServiceSpec) -> None:
    assert importlib.util.find_spec(f"{spec.module}.__main__")
    assert bool(spec.schema) == (importlib.util.find_spec(spec.migrations) is not None)
    assert set(spec.scopes) <= auth.SCOPES
    assert all(topology.by_role(role).port for role in spec.calls), "who is called has an address"
    assert spec.health in ("", *spec.grpc)


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.role)
def test_only_who_owns_a_schema_is_given_the_database(spec: ServiceSpec) -> None:
    assert (spec.uses >= DATABASE) == bool(spec.schema)


def test_the_gateway_calls_what_is_routed_and_signs_no_token() -> None:
    assert not GATEWAY.scopes
    addresses = {topology.address_setting(one.role) for one in topology.routable()}
    assert addresses <= GATEWAY.uses
    assert "ATELIER_WORKER_TOKEN" not in GATEWAY.uses


def test_a_service_that_is_added_is_called_by_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    echo = ServiceSpec("echo", "echo", ("echo.v1.EchoService",), port=9999, routed=True)
    monkeypatch.setattr(topology, "SERVICES", (*SERVICES, echo))
    assert "ATELIER_ECHO_ADDRESS" in GATEWAY.uses & topology.joining_settings()
    assert "echo.v1.EchoService" in topology.grpc_services()
    assert echo in topology.addressed()
