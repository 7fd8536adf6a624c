"""A mesh of processes with certificates: it works, and strangers on the network learn nothing of it."""

import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.certificates import Authority
from tests.e2e.conftest import StartMesh
from tests.e2e.harness import RunningMesh, ended_task, noop, until

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def authority(servers_folder: Path) -> Authority:
    return Authority(servers_folder, "mesh-authority")


def settings(authority: Authority, name: str) -> dict[str, str]:
    certificate, key = authority.issue(name)
    return {
        "ATELIER_TLS_CERTIFICATE": str(certificate),
        "ATELIER_TLS_KEY": str(key),
        "ATELIER_TLS_AUTHORITY": str(authority.file),
    }


@pytest.fixture(scope="module")
def certified(start_mesh: StartMesh, authority: Authority) -> RunningMesh:
    return start_mesh(**settings(authority, "mesh"))


def _healthy(channel: grpc.Channel) -> bool:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def test_a_task_is_made_and_every_service_is_seen_to_work(certified: RunningMesh) -> None:
    with certified.http("acme") as client:
        answer = client.post("/api/v1/tasks/", json=noop())
        assert answer.status_code == 200, answer.text
        assert ended_task(client, answer.json()["id"])["status"] == "COMPLETED"
        until(lambda: client.get("/health").json()["status"] == "healthy", "every service is seen to work")


def test_plain_text_no_certificate_and_one_of_another_authority_are_refused(
    certified: RunningMesh, authority: Authority, tmp_path: Path
) -> None:
    strange = Authority(tmp_path, "strange")
    certificate, key = strange.issue("stranger")
    trusted, ours = authority.file.read_bytes(), authority.issue("guest")
    bearers = {
        "none": grpc.ssl_channel_credentials(trusted),
        "another's": grpc.ssl_channel_credentials(trusted, key.read_bytes(), certificate.read_bytes()),
    }
    for role in ("tasks", "workflows", "training", "monitoring", "evaluation"):
        address = f"127.0.0.1:{certified.record.ports[role]}"
        channels = {name: grpc.secure_channel(address, one) for name, one in bearers.items()}
        channels["plain text"] = grpc.insecure_channel(address)
        for name, channel in channels.items():
            with channel, pytest.raises(grpc.RpcError) as refused:
                _healthy(channel)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE, (role, name)
        member = grpc.ssl_channel_credentials(trusted, ours[1].read_bytes(), ours[0].read_bytes())
        with grpc.secure_channel(address, member) as channel:
            assert _healthy(channel)


def test_a_service_does_not_start_with_a_certificate_of_no_use_and_says_why(authority: Authority) -> None:
    given = settings(authority, "late")
    authority.issue("late", hours=(-2, -1))
    for left_out, told in ((), "expired at"), (("ATELIER_TLS_KEY",), "ATELIER_TLS_KEY must be set too"):
        chosen = {name: value for name, value in given.items() if name not in left_out}
        ended = subprocess.run(
            [sys.executable, "-m", "services.tasks"],
            env={**os.environ, "ATELIER_AUTH_SECRET": "s" * 32, **chosen},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert ended.returncode == 1
        assert told in ended.stdout + ended.stderr
