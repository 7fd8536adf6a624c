"""What all tests against real servers share."""

import pytest

import meshkit.bus


@pytest.fixture(autouse=True)
def patient_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have NATS waited for as long as a busy machine may take: who publishes in a mesh repeats it, tests do not."""
    monkeypatch.setattr(meshkit.bus, "PUBLISH_TIMEOUT_SECONDS", 10.0)
