"""No tenant sees another's: over every documented route and every RPC."""

import io
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from atelier.inference.v1 import inference_service_pb2
from atelier.tasks.v1 import tasks_service_pb2, webhooks_service_pb2, worker_service_pb2
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from PIL import Image

from tests.e2e.harness import RunningMesh, until
from tests.loras.layouts import LAYOUTS, write

pytestmark = pytest.mark.timeout(600)

OWNER, STRANGER = "owner", "stranger"
_BODIES = {"PUT": {"priority": 3}, "PATCH": {"name": "taken", "priority": 3}}
# Routes that ask for more than their method tells.
_ROUTE_BODIES = {
    "/api/v1/training/{task_id}/continue": {"steps": 5},
    "/api/v1/training/{task_id}/sample": {"prompts": ["a red dress"]},
}
_QUERIES = {"/api/jobs/search": {"q": "secret-of-owner"}}
_TARGETS = "/api/system/monitoring/targets"  # a 503 where no Prometheus is configured
_CONFIG = json.loads((Path(__file__).parents[2] / "models/garments/weights/transformer/config.json").read_text())
_REFUSED = {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED}


@pytest.fixture(scope="module")
def owned(mesh: RunningMesh) -> dict[str, Any]:
    """A finished task with an object, and a stored picture."""
    with mesh.http(OWNER) as client:
        task = mesh.create(
            client,
            str(uuid.uuid4()),
            steps=0,
            result_bytes=64,
            origin_reference="secret-of-owner",
            webhook_url="https://hooks.example.com/of-owner",
        )
        done = until(
            lambda: (now := client.get(f"/api/v1/tasks/{task['id']}").json())["status"] == "COMPLETED" and now,
            "the owner's task completes",
        )
        picture = io.BytesIO()
        Image.new("RGB", (8, 8)).save(picture, "PNG")
        stored = client.post(
            "/api/v1/storage/images/mine/a.png", files={"file": ("a.png", picture.getvalue(), "image/png")}
        )
        assert stored.status_code in {200, 201}, stored.text
        return dict(done)


@pytest.fixture(scope="module")
def delivery(mesh: RunningMesh, owned: dict[str, Any]) -> str:
    """One of the webhooks of the owner's task."""
    with mesh.http(OWNER) as client:
        [first, *_] = client.get("/api/v1/webhooks/deliveries", params={"entity_id": owned["id"]}).json()
    return str(first["id"])


@pytest.fixture(scope="module")
def workflow(mesh: RunningMesh) -> str:
    """A workflow of the owner's."""
    with mesh.http(OWNER) as client:
        made = client.post(
            "/api/v1/workflows/",
            params={"start": False},
            json={
                "name": "secret-of-owner",
                "origin_instance": "e2e",
                "steps": [{"id": "only", "task_type": "GENERATION", "config": {"prompt": "a red dress"}}],
            },
        )
        assert made.status_code in {200, 201}, made.text
        return str(made.json()["id"])


@pytest.fixture(scope="module")
def training(mesh: RunningMesh) -> Iterator[str]:
    """A training of the owner's; the mesh has no trainer, so that it waits."""
    with mesh.http(OWNER) as client:
        body = {"trigger_word": "secret-of-owner", "source_images": ["mine/a.png"]}
        made = client.post("/api/v1/training/", json=body)
        assert made.status_code == 200, made.text
        yield str(made.json()["id"])
        assert client.get(f"/api/v1/training/{made.json()['id']}").json()["status"] == "PENDING"
        client.post(f"/api/v1/training/{made.json()['id']}/cancel")


@pytest.fixture(scope="module")
def lora(mesh: RunningMesh) -> str:
    """Folder and name of an adapter of the owner's."""
    with mesh.http(OWNER) as client:
        content = write(LAYOUTS["diffusers"](_CONFIG))
        stored = client.post("/api/v1/lora/upload", files={"file": ("own.safetensors", content)})
        assert stored.status_code == 200, stored.text
        return str(stored.json()["partial_path"])


def _routes(mesh: RunningMesh) -> list[tuple[str, str]]:
    document = httpx.get(f"{mesh.url}/openapi.json", timeout=60).json()
    return [
        (method.upper(), path)
        for path, item in document["paths"].items()
        for method in item
        if method in {"get", "put", "post", "patch", "delete", "head"}
    ]


def test_every_route_hides_what_another_tenant_owns(
    mesh: RunningMesh, owned: dict[str, Any], delivery: str, workflow: str, training: str, lora: str
) -> None:
    folder, _, name = lora.partition("/")
    tried = 0
    with mesh.http(STRANGER) as client:
        for method, route in _routes(mesh):
            if "{" not in route:
                continue
            ident = training if route.startswith("/api/v1/training/") else owned["id"]
            path = route.replace("{task_id}", ident).replace("{path}", "mine/a.png").replace("{token}", "guessed")
            path = path.replace("{folder}", folder).replace("{name}", name)
            path = path.replace("{delivery_id}", delivery).replace("{workflow_id}", workflow)
            path = path.replace("{job_id}", owned["id"]).replace("{worker_name}", "tasks_expiry")
            assert "{" not in path, f"{route} names something that this test does not know: add it"
            if method == "POST" and route.endswith("{path}"):
                continue  # writes below the stranger's own prefix; looked at below
            answer = client.request(method, path, json=_ROUTE_BODIES.get(route, _BODIES.get(method)))
            # What is the mesh's own is an operator's to change.
            expected = 403 if route.startswith("/api/system/") else 404
            assert answer.status_code == expected, f"{method} {route}: {answer.status_code} {answer.text}"
            assert "secret-of-owner" not in answer.text
            tried += 1
    assert tried >= 10
    _assert_untouched(mesh, owned)


def test_lists_are_empty_for_a_stranger(mesh: RunningMesh, owned: dict[str, Any]) -> None:
    with mesh.http("stranger-who-lists") as client:
        for method, route in _routes(mesh):
            # A stream of events never ends; what it tells whom is held by the tests of live events.
            if method == "GET" and "{" not in route and route.startswith("/api/") and route != "/api/v1/events":
                answer = client.get(route, params=_QUERIES.get(route))
                expected = {200, 403, 503} if route == _TARGETS else {200, 403}
                assert answer.status_code in expected, f"{route}: {answer.text}"
                assert owned["id"] not in answer.text
                assert "mine/a.png" not in answer.text
        assert client.get("/api/v1/tasks/", params={"origin_tenant_id": OWNER}).json() in ([], {"detail": "Forbidden"})


def test_same_path_of_two_tenants_is_two_objects(mesh: RunningMesh, owned: dict[str, Any]) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(picture, "PNG")
    with mesh.http("neighbour") as client:
        files = {"file": ("a.png", picture.getvalue(), "image/png")}
        assert client.post("/api/v1/storage/images/mine/a.png", files=files).status_code in {200, 201}
    _assert_untouched(mesh, owned)


def _assert_untouched(mesh: RunningMesh, owned: dict[str, Any]) -> None:
    with mesh.http(OWNER) as client:
        assert client.get(f"/api/v1/tasks/{owned['id']}").json() == owned
        stored = client.get("/api/v1/storage/images/mine/a.png", follow_redirects=True)
        assert stored.status_code == 200
        assert Image.open(io.BytesIO(stored.content)).size == (8, 8)


def _methods() -> Iterator[MethodDescriptor]:
    for module in (tasks_service_pb2, worker_service_pb2, webhooks_service_pb2, inference_service_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from service.methods


@pytest.mark.parametrize("method", list(_methods()), ids=lambda method: method.full_name.rpartition("v1.")[2])
def test_every_rpc_hides_what_another_tenant_owns(
    mesh: RunningMesh, owned: dict[str, Any], method: MethodDescriptor
) -> None:
    request: Any = message_factory.GetMessageClass(method.input_type)()
    foreign = False
    for field in method.input_type.fields:
        if field.name == "task_id" and field.containing_oneof is None:
            request.task_id = owned["id"]
            foreign = True
        elif field.name == "session_id":
            request.session_id = str(uuid.uuid4())
    if method.input_type.name == "UpdateTaskRequest" or method.input_type.name == "UpdateGenerationTaskRequest":
        request.update.priority = 3
        request.update_mask.paths.append("priority")
    service = method.containing_service
    address = mesh.folder.run("worker.address" if service.name == "InferenceService" else "tasks.address").read_text()
    metadata = (
        ("authorization", f"Bearer {mesh.token(STRANGER)}"),
        # Only a service may act for a tenant that it names.
        ("x-atelier-tenant", OWNER),
    )
    answer_type = message_factory.GetMessageClass(method.output_type)
    with grpc.insecure_channel(address) as channel:
        name = f"/{service.full_name}/{method.name}"
        make = channel.unary_stream if method.server_streaming else channel.unary_unary
        call = make(name, type(request).SerializeToString, answer_type.FromString)
        code, text = grpc.StatusCode.OK, ""
        try:
            answer: Any = call(request, metadata=metadata, timeout=10)
            text = str(list(answer)) if method.server_streaming else str(answer)
        except grpc.RpcError as error:
            code, text = error.code(), str(error.details())
    if foreign or service.name == "WorkerService":
        assert code in _REFUSED, f"{name}: {code} {text}"
    else:
        allowed = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED}
        assert code in _REFUSED | allowed, f"{name}: {code} {text}"
    if code is grpc.StatusCode.OK:
        assert owned["id"] not in text
    assert "secret-of-owner" not in text
    _assert_untouched(mesh, owned)


def test_descriptors_know_every_service() -> None:
    """A service that is added to the contracts has to be added here."""
    pool = descriptor_pool.Default()
    known = {method.containing_service.full_name for method in _methods()}
    for name in known:
        assert pool.FindServiceByName(name) is not None
