"""The components that join a mesh to a Prometheus and to a collector of spans."""

from urllib.parse import urlsplit

import pytest

from tests.unit.kubernetes.manifests import (
    Document,
    environment,
    named,
    of_kind,
    overlay,
    role,
    selects,
    services,
    with_components,
)
from tests.unit.kubernetes.test_network import labels_of
from tests.unit.kubernetes.test_schemas import RELEASES, errors, schemas


def leaving(documents: list[Document], policy: str) -> tuple[set[str], Document, int]:
    """Which services a policy lets out, to whom, and to which port."""
    spec = named(documents, "NetworkPolicy", policy)["spec"]
    assert spec["policyTypes"] == ["Egress"]
    [rule] = spec["egress"]
    [peer], [port] = rule["to"], rule["ports"]
    return (
        {role(one) for one in services(documents) if selects(spec["podSelector"], labels_of(one))},
        peer,
        port["port"],
    )


def test_monitoring_alone_reaches_the_prometheus_that_it_is_told_of_and_that_reads_the_pods() -> None:
    documents = overlay("production")
    told = {
        role(one): address
        for one in services(documents)
        if (address := environment(documents, one).get("ATELIER_PROMETHEUS_URL"))
    }
    url = urlsplit(told.pop("monitoring"))
    assert told == {}
    leaves, peer, port = leaving(documents, "monitoring-to-prometheus")
    assert (leaves, port) == ({"monitoring"}, url.port)
    namespace = str(url.hostname).partition(".")[2]
    assert peer["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    [rule] = named(documents, "NetworkPolicy", "prometheus-to-metrics")["spec"]["ingress"]
    assert rule["from"] == [peer]


def test_every_service_sends_its_spans_to_a_collector_that_it_reaches() -> None:
    documents = with_components("tracing")
    told = {role(one): environment(documents, one)["ATELIER_OTLP_ENDPOINT"] for one in services(documents)}
    [address] = set(told.values())
    url = urlsplit(address)
    leaves, peer, port = leaving(documents, "to-collector")
    assert (leaves, port) == (set(told), url.port)
    assert peer["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": str(url.hostname).partition(".")[0]}}


@pytest.mark.parametrize("release", RELEASES)
def test_what_tracing_adds_passes_the_schemas(release: str) -> None:
    read = schemas(release)
    documents = of_kind(with_components("tracing"), "NetworkPolicy", "ConfigMap")
    assert {one["metadata"]["name"]: wrong for one in documents if (wrong := errors(read, one))} == {}
