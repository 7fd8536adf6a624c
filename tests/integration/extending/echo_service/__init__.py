"""A service that only a test knows: it says a text again. It owns no table and calls nobody."""

from meshkit.topology import TOKENS, ServiceSpec

# In the mesh this entry stands in `meshkit.topology`, and nothing else outside of the service's folder and contracts.
ECHO = ServiceSpec(
    role="echo",
    module="echo_service",
    grpc=("echo.v1.EchoService",),
    port=9199,
    joins=TOKENS,
    routed=True,
)
