"""Another user of the machine tries every port that `atelier up` opens, and gets nothing of any tenant."""

import io
from collections.abc import Callable

import pytest
from PIL import Image

from meshkit.topology import SERVICES
from tests.e2e.harness import RunningMesh
from tests.e2e.open_ports import got_through, listeners, names_of_ports, try_all

TENANT = "walled"


@pytest.fixture(scope="module")
def walled(start_mesh: Callable[..., RunningMesh]) -> RunningMesh:
    return start_mesh(ATELIER_TRAINER="on")


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 60)).save(buffer, "PNG")
    return buffer.getvalue()


def test_another_user_reads_and_writes_nothing_through_any_port(walled: RunningMesh) -> None:
    with walled.http(tenant=TENANT) as client:
        secret = picture()
        stored = client.post(
            "/api/v1/storage/images/private/secret.png", content=secret, headers={"content-type": "image/png"}
        )
        assert stored.status_code in {200, 201}, stored.text
        before = walled.objects(TENANT)
        [path] = [path for path in before if path.endswith("secret.png")]

        opened, sockets = listeners(walled)
        names = names_of_ports(walled)
        assert {host.removeprefix("::ffff:") for host, _ in opened} == {"127.0.0.1"}, "every port is on loopback alone"
        ports = {port for _, port in opened}
        assert {"gateway", "tasks", "s3_s3", "nats", "postgres"} <= {names.get(port) for port in ports}
        assert ports <= set(names), "a port that nobody answers for"

        answers = try_all(walled, f"atelier/tenants/{TENANT}/{path}", ports, sockets)
        assert got_through(walled, answers) == []
        pages = [each["got"] for each in answers if str(names.get(each["door"])).startswith("metrics_")]
        assert "secret.png" not in str(pages)

        by_door = {each["door"]: each["got"] for each in answers}
        assert "password" in by_door["postgres"]
        assert "Authorization Violation" in by_door["nats"]
        refused = {names[each["door"]] for each in answers if each["got"] == "UNAUTHENTICATED"}
        assert {spec.role for spec in SERVICES if spec.grpc} <= refused

        assert walled.objects(TENANT) == before
        assert client.get("/api/v1/storage/images/private/secret.png").content == secret


def test_secrets_of_the_mesh_are_files_of_its_owner_alone(walled: RunningMesh) -> None:
    folder = walled.folder
    private = [folder / "credentials.json", folder / "mesh.json", folder / "s3", folder / "nats", folder / "worker"]
    assert [path.name for path in private if path.stat().st_mode & 0o077] == []
    keys = [folder / "s3" / "key.pem", folder / "s3" / "certificate.pem", folder / "nats" / "nats.conf"]
    assert [path.name for path in keys if path.stat().st_mode & 0o077] == []
