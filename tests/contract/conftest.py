"""The gateway's own OpenAPI document, as it is served."""

import pytest

from services.gateway.contracts import load_services, read_image
from services.gateway.server import document as build
from services.gateway.transcoding.routes import RouteTable, compile_services
from tests.contract.openapi_reading import Document


@pytest.fixture(scope="session")
def document() -> Document:
    image = read_image()
    services = load_services(image, ["atelier.tasks.v1"])
    return Document(build(RouteTable(compile_services(one.descriptor for one in services)), image, version="0.0.0"))
