"""Contracts stand alone: a gateway serves some services without the others."""

import subprocess
import sys

import pytest

from meshkit import topology

SERVED = """
import sys
from meshkit.transcoding.codec import Codecs
from meshkit.transcoding.requests import RequestDecoder
from meshkit.transcoding.routes import compile_services
from services.gateway.contracts import load_services, read_image
services = load_services(read_image(), sys.argv[1:])
codecs = Codecs()
for route in compile_services(one.descriptor for one in services):
    RequestDecoder(route, codecs)
"""


@pytest.mark.parametrize("role", [spec.role for spec in topology.routed()])
def test_a_service_is_served_without_the_others(role: str) -> None:
    # In a process of its own: what any test has loaded would be there.
    done = subprocess.run(
        [sys.executable, "-c", SERVED, *topology.by_role(role).packages], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
