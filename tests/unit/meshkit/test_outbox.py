"""Headers of events; the outbox itself is tested against PostgreSQL and NATS."""

from meshkit.outbox import event_headers


def test_headers_tell_version_tenant_and_type() -> None:
    headers = event_headers(version=3, tenant="acme", event_type="task_created", traceparent="")
    assert headers == {"Atelier-Version": "3", "Atelier-Tenant": "acme", "Atelier-Event-Type": "task_created"}


def test_an_event_belongs_to_the_trace_of_its_entity() -> None:
    headers = event_headers(version=1, tenant="acme", event_type="task_created", traceparent="00-a-b-01")
    assert headers["traceparent"] == "00-a-b-01"
