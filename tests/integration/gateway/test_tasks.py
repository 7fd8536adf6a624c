"""JSON over HTTP in, gRPC out, and the answers back."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from meshkit import tracing
from meshkit.auth import TokenIssuer
from tests.conftest import S3Store
from tests.integration.gateway.conftest import Mesh, StartMesh, s3_options

CREATE: dict[str, Any] = {"task_type": "GENERATION", "prompt": "a red dress", "origin_instance": "shop"}
ABSENT = "00000000-0000-4000-8000-000000000000"


async def created(client: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    answer = await client.post("/api/v1/tasks/", json=CREATE | more)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_create_reaches_the_service_and_answers_with_the_task(mesh: Mesh) -> None:
    task = await created(mesh.client(), width=512, config={"a": 1, "b": [1.5, None, {"c": True}]}, seed=2**62)
    assert task["task_type"] == "GENERATION"
    assert task["prompt"] == "a red dress"
    assert task["width"] == 512
    assert task["status"] == "PENDING"
    assert task["config"] == {"a": 1, "b": [1.5, None, {"c": True}]}
    assert task["started_at"] is None
    assert task["created_at"].endswith("Z")
    assert "version" not in task
    request = mesh.tasks.requests[-1]
    assert request.task.generation.seed == 2**62
    assert request.task.generation.height == 1024, "the service applied the contract's default"


async def test_null_in_a_create_is_absent_and_takes_the_default(mesh: Mesh) -> None:
    assert (await created(mesh.client(), width=None, seed=None, config=None))["width"] == 1024


async def test_the_token_and_the_request_id_are_forwarded(mesh: Mesh) -> None:
    client = mesh.client()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = await client.get("/api/v1/tasks/", headers={"x-request-id": "mine-1", "traceparent": trace})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["traceparent"].split("-")[1] == trace.split("-")[1]
    metadata = mesh.tasks.metadata[-1]
    assert metadata["authorization"] == client.headers["authorization"]
    assert metadata["x-request-id"] == "mine-1"
    assert metadata["traceparent"].split("-")[1] == trace.split("-")[1]


async def test_a_request_without_a_name_goes_by_its_trace_everywhere(mesh: Mesh) -> None:
    answer = await mesh.client().get("/api/v1/tasks/")
    metadata = mesh.tasks.metadata[-1]
    assert (
        tracing.begin(metadata["traceparent"], metadata.get("x-request-id", "")).request_id
        == (answer.headers["x-request-id"])
    )


async def test_lists_are_bare_arrays_with_typed_parameters(mesh: Mesh) -> None:
    client = mesh.client()
    for _ in range(3):
        await created(client)
    answer = await client.get("/api/v1/tasks", params={"limit": 2, "status": "PENDING", "include_deleted": "true"})
    assert len(answer.json()) == 2
    request = mesh.tasks.requests[-1]
    assert (request.limit, request.status, request.include_deleted, request.skip) == (2, 1, True, 0)


async def test_literal_routes_win_over_variables(mesh: Mesh) -> None:
    client = mesh.client()
    assert (await client.get("/api/v1/tasks/generation")).json() == []
    assert mesh.tasks.requests[-1].DESCRIPTOR.name == "ListGenerationTasksRequest"


@pytest.mark.parametrize(
    ("body", "loc", "kind"),
    [
        ({"prompt": "x", "origin_instance": "s"}, ["body", "task_type"], "missing"),
        (CREATE | {"task_type": "PAINTING"}, ["body", "task_type"], "enum"),
        ({"task_type": "GENERATION", "origin_instance": "s"}, ["body", "prompt"], "missing"),
        (CREATE | {"width": 0}, ["body", "width"], "greater_than_equal"),
        (CREATE | {"width": 100_000}, ["body", "width"], "greater_than_equal"),
        (CREATE | {"width": "wide"}, ["body", "width"], "int_type"),
        (CREATE | {"width": 10**12}, ["body", "width"], "int_out_of_range"),
        (CREATE | {"prompt": "a\0b"}, ["body", "prompt"], "string_contains_nul"),
        (CREATE | {"prompt": 7}, ["body", "prompt"], "string_type"),
        (CREATE | {"config": {"a": {"b": "\0"}}}, ["body", "config"], "string_contains_nul"),
        (CREATE | {"provider_type": "NOBODY"}, ["body", "provider_type"], "enum"),
        (
            CREATE | {"provider_type": "AI_CORE", "provider_config": {"ai_provider": "openai"}},
            ["body", "provider_config", "model"],
            "missing",
        ),
        ([], ["body"], "dict_type"),
    ],
)
async def test_a_malformed_create_is_a_422_that_names_the_member(
    mesh: Mesh, body: Any, loc: list[Any], kind: str
) -> None:
    answer = await mesh.client().post("/api/v1/tasks/", json=body)
    assert answer.status_code == 422
    assert [(one["loc"], one["type"]) for one in answer.json()["detail"]] == [(loc, kind)]
    assert not mesh.tasks.tasks


async def test_a_create_without_a_type_lists_the_types(mesh: Mesh) -> None:
    answer = await mesh.client().post("/api/v1/tasks/", json={"prompt": "x"})
    message = next(one["msg"] for one in answer.json()["detail"] if one["loc"] == ["body", "task_type"])
    assert "GENERATION" in message
    assert "IMAGE_ADJUSTER" in message
    assert "NOOP" not in message


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b'{"a": NaN}', b"[" * 5000])
async def test_a_body_that_is_no_json_is_a_422(mesh: Mesh, content: bytes) -> None:
    answer = await mesh.client().post("/api/v1/tasks/", content=content)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][0] == "body"


@pytest.mark.parametrize(
    ("path", "loc"),
    [
        ("/api/v1/tasks/not-a-uuid", ["path", "task_id"]),
        ("/api/v1/tasks/?limit=0", ["query", "limit"]),
        ("/api/v1/tasks/?limit=ten", ["query", "limit"]),
        ("/api/v1/tasks/?status=SLEEPING", ["query", "status"]),
        ("/api/v1/tasks/?skip=-1", ["query", "skip"]),
        (f"/api/v1/tasks/?skip={10**30}", ["query", "skip"]),
    ],
)
async def test_a_malformed_path_or_query_is_a_422(mesh: Mesh, path: str, loc: list[str]) -> None:
    answer = await mesh.client().get(path)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == loc


async def test_too_many_parameters_are_a_422(mesh: Mesh) -> None:
    answer = await mesh.client().get("/api/v1/tasks/?" + "&".join(["a=1"] * 500))
    assert answer.status_code == 422


async def test_unknown_members_are_ignored_unless_the_caller_prefers_otherwise(mesh: Mesh) -> None:
    client = mesh.client()
    await created(client, colour="red")
    answer = await client.post("/api/v1/tasks/", json=CREATE | {"colour": 1}, headers={"prefer": "handling=strict"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0] == {
        "loc": ["body", "colour"],
        "msg": "Extra inputs are not permitted",
        "type": "extra_forbidden",
    }
    strict = await client.post("/api/v1/tasks/", json=CREATE, headers={"prefer": "handling=strict"})
    assert strict.headers["preference-applied"] == "handling=strict"
    assert "warning" not in strict.headers


async def test_a_member_that_is_ignored_is_named_in_the_answer(mesh: Mesh) -> None:
    client = mesh.client()
    answer = await client.post("/api/v1/tasks/", json=CREATE | {"widht": 512, 'a "colour"\n\u00fc': "red"})
    assert answer.status_code == 200
    assert answer.headers["warning"].startswith(
        '299 atelier "Members that are not known: widht (did you mean width?), '
    )
    assert answer.json()["width"] == 1024
    many = await client.post("/api/v1/tasks/", json=CREATE | {f"{'x' * 500}{number}": 1 for number in range(5000)})
    assert many.headers["warning"].endswith(' and 4992 more"')
    assert len(many.headers["warning"]) < 1200
    assert "warning" not in (await client.post("/api/v1/tasks/", json=CREATE | {"config": {"widht": 1}})).headers
    asked = await client.get("/api/v1/tasks/?limt=5")
    assert asked.headers["warning"] == '299 atelier "Members that are not known: limt (did you mean limit?)"'


async def test_a_slip_of_the_pen_is_refused_with_what_was_meant(mesh: Mesh) -> None:
    answer = await mesh.client().post(
        "/api/v1/tasks/", json=CREATE | {"widht": 512}, headers={"prefer": "handling=strict"}
    )
    assert answer.json()["detail"] == [
        {
            "loc": ["body", "widht"],
            "msg": "Extra inputs are not permitted: did you mean width?",
            "type": "extra_forbidden",
        }
    ]


async def test_an_update_names_the_members_present_and_null_clears(mesh: Mesh) -> None:
    client = mesh.client()
    ident = (await created(client))["id"]
    answer = await client.put(f"/api/v1/tasks/{ident}", json={"priority": 3, "config": None, "unknown": 1})
    assert answer.status_code == 200
    request = mesh.tasks.requests[-1]
    assert list(request.update_mask.paths) == ["priority", "config"]
    assert request.update.priority == 3
    assert not request.update.HasField("config")


async def test_errors_of_the_service_become_http(mesh: Mesh) -> None:
    client = mesh.client()
    ident = (await created(client))["id"]
    missing = await client.get(f"/api/v1/tasks/{ABSENT}")
    assert (missing.status_code, missing.json()) == (404, {"detail": f"Task {ABSENT} not found"})
    assert (await client.delete(f"/api/v1/tasks/{ident}")).status_code == 409
    down = await client.get(f"/api/v1/tasks/{ident}/attempts")
    assert (down.status_code, down.headers["retry-after"]) == (503, "2")


async def test_an_unexpected_error_of_the_service_shows_an_id_and_no_text(mesh: Mesh) -> None:
    client = mesh.client()
    ident = (await created(client))["id"]
    answer = await client.post(f"/api/v1/tasks/{ident}/cancel")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["detail"].startswith("Internal error ")


async def test_a_method_that_a_path_does_not_have_is_a_405(mesh: Mesh) -> None:
    answer = await mesh.client().patch(f"/api/v1/tasks/{ABSENT}")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "DELETE, GET, PUT"
    assert (await mesh.client().post("/health")).status_code == 405
    assert (await mesh.client().get("/api/v1/nothing")).json() == {"detail": "Not Found"}


async def test_head_answers_as_get_without_content(mesh: Mesh) -> None:
    client = mesh.client()
    ident = (await created(client))["id"]
    answer = await client.head(f"/api/v1/tasks/{ident}")
    assert answer.status_code == 200
    assert not answer.content
    assert int(answer.headers["content-length"]) > 100


async def test_a_response_without_a_single_member_is_the_whole_message(mesh: Mesh) -> None:
    client = mesh.client()
    ident = (await created(client))["id"]
    answer = (await client.post(f"/api/v1/tasks/{ident}/cleanup")).json()
    assert answer["deleted_paths"] == ["a/b.png"]
    assert answer["task"]["id"] == ident


async def test_a_replayed_create_says_so(mesh: Mesh) -> None:
    client = mesh.client()
    headers = {"idempotency-key": "k-1"}
    first = await client.post("/api/v1/tasks/", json=CREATE, headers=headers)
    again = await client.post("/api/v1/tasks/", json=CREATE, headers=headers)
    assert first.json() == again.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert len(mesh.tasks.tasks) == 1


async def test_a_malformed_idempotency_key_is_a_422(mesh: Mesh) -> None:
    answer = await mesh.client().post("/api/v1/tasks/", json=CREATE, headers={"idempotency-key": "a b"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["header", "Idempotency-Key"]


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ({}, 'Bearer realm="atelier"'),
        ({"authorization": "Basic YTpi"}, 'Bearer realm="atelier", error="invalid_token"'),
        ({"authorization": "Bearer nonsense"}, 'Bearer realm="atelier", error="invalid_token"'),
    ],
)
async def test_without_a_valid_token_the_answer_is_a_401(mesh: Mesh, headers: dict[str, str], challenge: str) -> None:
    async with httpx.AsyncClient(base_url=mesh.url) as client:
        answer = await client.get("/api/v1/tasks/", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == challenge
    assert not mesh.tasks.requests


async def test_tokens_that_expired_or_are_another_meshs_are_a_401(mesh: Mesh) -> None:
    stranger = TokenIssuer("another secret that is long enough too").issue("ada", "acme", ("read",), 60)
    async with httpx.AsyncClient(base_url=mesh.url) as client:
        for token in (mesh.token(ttl=-120), stranger):
            answer = await client.get("/api/v1/tasks/", headers={"authorization": f"Bearer {token}"})
            assert answer.status_code == 401
    assert not mesh.tasks.requests


async def test_a_missing_scope_is_named(mesh: Mesh) -> None:
    answer = await mesh.client(scopes=("read",)).post("/api/v1/tasks/", json=CREATE)
    assert answer.status_code == 403
    assert answer.json() == {"detail": "The token lacks the scope 'write'"}
    assert 'scope="write"' in answer.headers["www-authenticate"]


async def test_large_answers_are_compressed_where_the_caller_takes_it(mesh: Mesh) -> None:
    client = mesh.client()
    for _ in range(3):
        await created(client)
    packed = await client.get("/api/v1/tasks/")
    plain = await client.get("/api/v1/tasks/", headers={"accept-encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert plain.headers["vary"] == packed.headers["vary"] == "accept-encoding"
    assert packed.json() == plain.json()


async def test_cors_is_answered_where_it_is_configured(start_mesh: StartMesh, mesh: Mesh) -> None:
    origin = {"origin": "https://app.example"}
    open_mesh = await start_mesh(cors_origins=("https://app.example",))
    preflight = origin | {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    answer = await open_mesh.client().options("/api/v1/tasks/", headers=preflight)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    closed = await mesh.client().get("/api/v1/tasks/", headers=origin)
    assert "access-control-allow-origin" not in closed.headers


@pytest.mark.parametrize("configured", ["*", "https://app.example", "http://localhost:5173,https://app.example/"])
@pytest.mark.parametrize(
    "path", ["/api/v1/tasks/", "/api/v1/tasks/generation/x/cancel", "/api/v1/storage/images/a/b.png", "/nothing"]
)
async def test_a_preflight_opens_every_route_to_any_header(start_mesh: StartMesh, configured: str, path: str) -> None:
    mesh = await start_mesh(cors_origins=configured)
    asked = "authorization, content-type, idempotency-key, if-none-match, prefer, traceparent, x-requested-with"
    async with httpx.AsyncClient(base_url=mesh.url) as page:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            headers = {"access-control-request-method": method, "access-control-request-headers": asked}
            answer = await page.options(path, headers=headers | {"origin": "https://app.example"})
            assert answer.status_code == 200, answer.text
            assert answer.headers["access-control-allow-origin"] in {"*", "https://app.example"}
            assert method in answer.headers["access-control-allow-methods"].split(", ")
            allowed = {name.strip().lower() for name in answer.headers["access-control-allow-headers"].split(",")}
            assert set(asked.split(", ")) <= allowed
        other = await page.options(path, headers=headers | {"origin": "https://evil.example"})
        assert (other.status_code == 200) is (configured == "*")


async def test_answers_carry_security_headers(mesh: Mesh) -> None:
    answer = await mesh.client().get("/docs")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "server" not in answer.headers


async def test_health_tells_of_the_services_behind(mesh: Mesh) -> None:
    async with httpx.AsyncClient(base_url=mesh.url) as client:
        answer = await client.get("/health")
        assert answer.status_code == 200
        assert answer.json()["services"] == {"tasks": "healthy"}
        await mesh.server.stop(0)

        async def unhealthy() -> bool:
            return (await client.get("/health")).status_code == 503

        for _ in range(100):
            if await unhealthy():
                break
        answer = await client.get("/api/v1/tasks/", headers={"authorization": f"Bearer {mesh.token()}"})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "2"
        assert (await client.get("/health/live")).status_code == 200


async def test_the_document_is_served(mesh: Mesh) -> None:
    document = (await mesh.client().get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    assert "/api/v1/tasks/generation/{task_id}/cancel" in document["paths"]
    json.dumps(document)


async def test_a_page_may_read_why_it_was_refused(start_mesh: StartMesh, s3: S3Store) -> None:
    mesh = await start_mesh(cors_origins=("*",), **s3_options(s3))
    origin = {"origin": "https://app.example"}
    for path in ("/api/v1/storage/images/none.png", "/api/v1/tasks/x", "/api/v1/media/x", "/nothing"):
        answer = await mesh.client().get(path, headers=origin)
        assert answer.status_code in {404, 422}
        assert answer.headers["access-control-allow-origin"] == "*", path
    large = await mesh.client().post("/api/v1/tasks/", content=b" " * (33 * 1024 * 1024), headers=origin)
    assert (large.status_code, large.headers["access-control-allow-origin"]) == (413, "*")


async def test_a_request_in_flight_is_finished_when_the_gateway_stops(mesh: Mesh) -> None:
    client = mesh.client()
    mesh.tasks.hold.clear()
    request = asyncio.create_task(client.post("/api/v1/tasks/", json=CREATE))
    async with asyncio.timeout(60):
        await mesh.tasks.held.wait()
    ending = asyncio.create_task(mesh.stack.aclose())
    async with asyncio.timeout(60):
        await mesh.stopping.wait()
    mesh.tasks.hold.set()
    assert (await request).status_code == 200
    await ending
