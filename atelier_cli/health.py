"""Health of processes."""

import os
import sys
from pathlib import Path
from typing import Final

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshkit.health import PROCESS

_TIMEOUT_SECONDS: Final = 2.0


def grpc_serves(address: str, service: str = "") -> bool:
    """Whether the gRPC server at the address, or one of its services, reports SERVING."""
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=_TIMEOUT_SECONDS
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def reported_grpc_serves(file: Path, service: str = "") -> bool:
    """Return the same for a server that wrote its address into a file, when it is ready."""
    try:
        address = file.read_text().strip()
    except FileNotFoundError:
        return False
    return bool(address) and grpc_serves(address, service)


def http_serves(url: str) -> bool:
    """Whether a GET there is answered with 200."""
    try:
        return httpx.get(url, timeout=_TIMEOUT_SECONDS).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def main(protocol: str = "grpc") -> int:
    """Ask the process of this container whether it serves: `python -m atelier_cli.health [http]`.

    Args:
        protocol: What it speaks; the gateway speaks `http`.

    Returns:
        The exit status: 0 if it does.
    """
    port = os.environ.get("ATELIER_LISTEN", "").rpartition(":")[2]
    address = f"127.0.0.1:{port}"
    serves = http_serves(f"http://{address}/health/live") if protocol == "http" else grpc_serves(address, PROCESS)
    return 0 if serves else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
