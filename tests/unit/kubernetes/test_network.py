"""The arrows that NetworkPolicies allow are the calls that the table of services names."""

from collections.abc import Iterator

import pytest

from meshkit import topology
from meshkit.topology import DATABASE, NATS, OBJECTS
from tests.unit.kubernetes.manifests import BUILDS, Document, of_kind, overlay, pod, role, selects, services

_INTERNET = "atelier.io/uses-internet"


class Policies:
    """The policies of an overlay, as a network plugin reads them; pods are in one namespace."""

    def __init__(self, documents: list[Document]) -> None:
        self._policies = [one["spec"] for one in of_kind(documents, "NetworkPolicy")]

    def allows(self, way: str, labels: dict[str, str], peer: dict[str, str], port: int) -> bool:
        """Whether a pod may be reached by (`Ingress`), or reach (`Egress`), a peer at a port."""
        concerned = [one for one in self._policies if way in one["policyTypes"] and selects(one["podSelector"], labels)]
        return not concerned or any(
            self._peer(rule, way, peer) and self._port(rule, port)
            for one in concerned
            for rule in one.get(way.lower(), [])
        )

    @staticmethod
    def _peer(rule: Document, way: str, peer: dict[str, str]) -> bool:
        peers = rule.get("from" if way == "Ingress" else "to")
        return peers is None or any(
            "podSelector" in one
            and selects(one["podSelector"], peer)
            and one.get("namespaceSelector", {}).get("matchLabels") is None
            for one in peers
        )

    @staticmethod
    def _port(rule: Document, port: int) -> bool:
        return any(one["port"] <= port <= one.get("endPort", one["port"]) for one in rule["ports"])

    def networks(self, labels: dict[str, str], port: int) -> Iterator[str]:
        """Networks that a pod may reach at a port."""
        for one in self._policies:
            if "Egress" in one["policyTypes"] and selects(one["podSelector"], labels):
                for rule in one.get("egress", []):
                    if self._port(rule, port):
                        yield from (peer["ipBlock"]["cidr"] for peer in rule["to"] if "ipBlock" in peer)


def labels_of(deployment: Document) -> dict[str, str]:
    labels: dict[str, str] = deployment["spec"]["template"]["metadata"]["labels"]
    return labels


@pytest.mark.parametrize("name", BUILDS)
def test_services_reach_those_that_they_call_and_no_other(name: str) -> None:
    documents = overlay(name)
    policies, pods = Policies(documents), services(documents)
    allowed = set()
    for caller in pods:
        for callee in pods:
            ports = {port["name"]: port["containerPort"] for port in pod(callee)["containers"][0]["ports"]}
            for port_name, port in ports.items():
                leaves = policies.allows("Egress", labels_of(caller), labels_of(callee), port)
                enters = policies.allows("Ingress", labels_of(callee), labels_of(caller), port)
                if leaves and enters:
                    allowed.add((role(caller), role(callee), port_name))
    routed = tuple(one.role for one in topology.routed())
    wanted = {
        (spec.role, one, "grpc")
        for spec in (*topology.SERVICES, topology.CALLER)
        for one in (*spec.calls, *(routed if spec.fronts else ()))
    }
    # Optional services call those that they name, and are called by those that are given their address.
    there = {role(one) for one in pods}
    for spec in (one for one in topology.OPTIONAL if one.role in there):
        wanted |= {(spec.role, one, "grpc") for one in spec.calls}
        address = topology.address_setting(spec.role)
        wanted |= {(one, spec.role, "grpc") for one in there if address in topology.by_role(one).uses}
    assert allowed == wanted


@pytest.mark.parametrize("name", ["local", "gpu", "capture"])
def test_services_reach_the_servers_that_they_stand_on_and_no_other(name: str) -> None:
    documents = overlay(name)
    policies = Policies(documents)
    servers = {"postgresql": (DATABASE, 5432), "nats": (NATS, 4222), "objects": (OBJECTS, 8333)}
    for one in services(documents):
        uses = topology.by_role(role(one)).uses
        for server, (settings, port) in servers.items():
            peer = {"app.kubernetes.io/name": server}
            reached = policies.allows("Egress", labels_of(one), peer, port)
            if name == "local":  # which has them in the same namespace
                reached &= policies.allows("Ingress", peer, labels_of(one), port)
            assert reached == bool(settings & uses), f"{role(one)} and {server}"


def test_servers_outside_are_reached_in_their_network_alone() -> None:
    documents = overlay("production")
    policies = Policies(documents)
    for one in services(documents):
        uses = topology.by_role(role(one)).uses
        for settings, port in ((DATABASE, 5432), (NATS, 4222)):
            found = set(policies.networks(labels_of(one), port)) - {"0.0.0.0/0", "::/0"}
            assert found == ({"10.20.0.0/16"} if settings & uses else set())


@pytest.mark.parametrize("name", BUILDS)
def test_public_addresses_are_reached_by_those_that_fetch(name: str) -> None:
    documents = overlay(name)
    policies = Policies(documents)
    for one in services(documents):
        public = set(policies.networks(labels_of(one), 443)) >= {"0.0.0.0/0", "::/0"}
        assert public == (labels_of(one).get(_INTERNET) == "true")
        fetches = role(one) not in ("gateway", "monitoring", "capture")
        assert public == fetches, "pictures by address, webhooks, providers"


@pytest.mark.parametrize("name", BUILDS)
def test_a_pod_that_no_policy_names_reaches_nothing(name: str) -> None:
    policies = Policies(overlay(name))
    stranger = {"app.kubernetes.io/name": "stranger"}
    assert not policies.allows("Egress", stranger, stranger, 9101)
    assert not policies.allows("Ingress", stranger, stranger, 9101)
    assert policies.allows("Ingress", {"app.kubernetes.io/name": "gateway"}, stranger, 9000), "but for the front door"
