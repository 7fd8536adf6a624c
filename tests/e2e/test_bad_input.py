"""Bad input: each case is a clear error, and nothing is left over."""

import base64
import io
import struct
import uuid
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from atelier_cli.tokens import issue
from tests.e2e.harness import RunningMesh, noop, until

pytestmark = pytest.mark.timeout(600)

TENANT = "clumsy"


@pytest.fixture
def client(mesh: RunningMesh) -> Iterator[httpx.Client]:
    with mesh.http(TENANT) as client:
        yield client


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(mesh: RunningMesh) -> Iterator[None]:
    yield
    with mesh.http(TENANT) as client:
        assert mesh.tasks(client, include_deleted=True) == []
    assert mesh.objects(TENANT) == set()


def generation(**fields: Any) -> dict[str, Any]:
    return {"task_type": "GENERATION", "origin_instance": "e2e", "prompt": "a red dress", **fields}


def png(width: int, height: int) -> bytes:
    """A PNG whose header promises a size, with almost no data behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("body", "member"),
    [
        (generation(task_type="MAGIC"), "task_type"),
        ({"origin_instance": "e2e", "prompt": "a red dress"}, "task_type"),
        ({"task_type": "GENERATION", "origin_instance": "e2e"}, "prompt"),
        ({"task_type": "GENERATION", "prompt": "a red dress"}, "origin_instance"),
        (generation(width="wide"), "width"),
        (generation(prompt=["a", "red", "dress"]), "prompt"),
        (generation(width=0), "width"),
        (generation(height=100_000), "height"),
        (generation(prompt="a red\0dress"), "prompt"),
        (generation(origin_reference="a\0b"), "origin_reference"),
        (generation(reference_image_data="%%% not base64 %%%"), "reference_image_data"),
        (generation(reference_image_data=encoded(b"no picture at all")), "reference_image_data"),
        (generation(reference_image_data=encoded(png(50_000, 50_000))), "reference_image_data"),
        (generation(reference_image_data="data:image/png;base64,AAAA"), "reference_image_data"),
        (generation(reference_image_url="http://169.254.169.254/latest/meta-data"), "reference_image_url"),
        (generation(reference_image_url="http://127.0.0.1:1/a.png"), "reference_image_url"),
        (generation(reference_image_url="http://[::1]/a.png"), "reference_image_url"),
        (generation(reference_image_url="file:///etc/passwd"), "reference_image_url"),
        (generation(reference_image_url="../../etc/passwd.png"), "reference_image_url"),
        (generation(webhook_url="http://10.0.0.1/hook"), "webhook_url"),
        (generation(style_model_path="styles/nobody-made-this.safetensors"), "style_model_path"),
        (generation(style_model_path="../other/style.safetensors"), "style_model_path"),
        (generation(queue_name="express"), "queue_name"),
        (generation(provider_type="SOMEONE"), "provider_type"),
        (noop(steps=-1), "steps"),
    ],
)
def test_create_names_the_member_that_is_wrong(client: httpx.Client, body: dict[str, Any], member: str) -> None:
    answer = client.post("/api/v1/tasks/", json=body)
    assert answer.status_code == 422, answer.text
    detail = answer.json()["detail"]
    assert all({"loc", "msg", "type"} <= set(each) for each in detail)
    assert any(member in each["loc"] for each in detail), detail


def test_body_that_is_no_json_is_told(client: httpx.Client) -> None:
    answer = client.post("/api/v1/tasks/", content=b"{broken", headers={"content-type": "application/json"})
    assert answer.status_code in {400, 422}
    assert "detail" in answer.json()


def test_body_of_60_mb_is_refused(client: httpx.Client) -> None:
    body = b'{"task_type":"GENERATION","prompt":"' + b"a" * 60_000_000 + b'"}'
    try:
        answer = client.post("/api/v1/tasks/", content=body, headers={"content-type": "application/json"})
    except httpx.WriteError:
        return  # refused before all of it was sent: TCP has no clearer answer
    assert answer.status_code == 413
    assert "detail" in answer.json()


def test_upload_of_60_mb_is_refused(client: httpx.Client) -> None:
    try:
        answer = client.post("/api/v1/storage/images/big.png", files={"file": ("big.png", b"\0" * 60_000_000)})
    except httpx.WriteError:
        return
    assert answer.status_code == 413


@pytest.mark.parametrize("path", ["..%2f..%2fother%2fa.png", "a/%2e%2e/%2e%2e/b.png", "a%00b.png", "%2fetc%2fpasswd"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "HEAD"])
def test_path_that_leads_elsewhere_is_refused(client: httpx.Client, method: str, path: str) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    files = {"file": ("a.png", picture.getvalue(), "image/png")} if method == "POST" else None
    answer = client.request(method, f"/api/v1/storage/images/{path}", files=files)
    assert answer.status_code in {400, 404, 422}, answer.text


def test_upload_that_is_no_picture_is_refused(client: httpx.Client) -> None:
    answer = client.post("/api/v1/storage/images/a.png", files={"file": ("a.png", b"MZ not a picture", "image/png")})
    assert answer.status_code in {400, 415, 422}, answer.text


@pytest.mark.parametrize(
    ("token", "why"),
    [("", "missing"), ("Bearer", "empty"), ("Bearer abc.def.ghi", "broken"), ("Basic dTpw", "another scheme")],
)
def test_no_usable_token_is_401_and_says_why(mesh: RunningMesh, token: str, why: str) -> None:
    headers = {"authorization": token} if token else {}
    answer = httpx.post(f"{mesh.url}/api/v1/tasks/", json=noop(), headers=headers, timeout=60)
    assert answer.status_code == 401, why
    assert answer.json()["detail"]
    assert "www-authenticate" in answer.headers


def test_expired_token_is_401(mesh: RunningMesh) -> None:
    token = issue(mesh.folder, tenant=TENANT, scopes=("read", "write"), ttl_seconds=-60)
    answer = httpx.post(
        f"{mesh.url}/api/v1/tasks/", json=noop(), headers={"authorization": f"Bearer {token}"}, timeout=60
    )
    assert answer.status_code == 401
    assert "expired" in answer.json()["detail"].lower()


def test_missing_scope_is_403_and_named(mesh: RunningMesh) -> None:
    with mesh.http(TENANT, scopes=("read",)) as client:
        answer = client.post("/api/v1/tasks/", json=noop())
    assert answer.status_code == 403
    assert "write" in answer.json()["detail"]


def test_task_for_a_foreign_tenant_is_403(client: httpx.Client) -> None:
    assert client.post("/api/v1/tasks/", json=noop(origin_tenant_id="somebody-else")).status_code == 403


def test_foreign_task_is_not_there(mesh: RunningMesh, client: httpx.Client) -> None:
    with mesh.http("owner") as owner:
        task = mesh.create(owner, str(uuid.uuid4()), steps=0)
    for method, path in (("GET", ""), ("PUT", ""), ("DELETE", ""), ("POST", "/cancel"), ("POST", "/cleanup")):
        body = {"priority": 3} if method == "PUT" else None
        answer = client.request(method, f"/api/v1/tasks/{task['id']}{path}", json=body)
        assert answer.status_code == 404, f"{method} {path}: {answer.text}"


def test_delete_while_executing_is_a_conflict(mesh: RunningMesh) -> None:
    with mesh.http("busy") as client:
        task = mesh.create(client, str(uuid.uuid4()), steps=100, step_ms=200)
        until(lambda: client.get(f"/api/v1/tasks/{task['id']}").json()["status"] == "EXECUTING", "the task executes")
        for method, path in (("DELETE", ""), ("POST", "/cleanup")):
            answer = client.request(method, f"/api/v1/tasks/{task['id']}{path}")
            assert answer.status_code == 409, answer.text
            assert answer.json()["detail"]
        assert client.post(f"/api/v1/tasks/{task['id']}/cancel").status_code == 200
