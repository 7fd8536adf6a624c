"""The documented endpoints of trainings, row by row: members, defaults, nulls, refusals, lists, tenants."""

import base64
import io
from typing import Any

from PIL import Image

from tests.integration.training.conftest import PATH, Mesh, StartMesh, data_url, unknown


async def test_a_training_shows_its_51_members_with_their_defaults(mesh: Mesh) -> None:
    answer = await mesh.http().post(PATH, json={"trigger_word": "zorblat", "source_images": [data_url()]})
    assert answer.status_code == 200
    shown = answer.json()
    assert len(shown) == 51
    ident = shown["id"]
    assert {name: shown[name] for name in sorted(shown) if shown[name] is None} == dict.fromkeys(
        [
            "celery_preprocessing_task_id",
            "celery_training_task_id",
            "completed_at",
            "entity_id",
            "error_message",
            "eta_seconds",
            "local_model_path",
            "origin_version",
            "origin_zone",
            "preprocessing_captioning_prompt",
            "preprocessing_completed_at",
            "preprocessing_stage",
            "preprocessing_started_at",
            "preprocessing_transforms",
            "priority_changed_at",
            "processed_dataset_path",
            "processed_files_count",
            "started_at",
            "total_files_count",
        ]
    )
    constant = {
        "origin_instance": "unknown",
        "origin_tenant_id": "acme",
        "training_type": "LORA",
        "entity_type": "PRODUCT",
        "status": "PENDING",
        "progress": 0.0,
        "current_step": 0,
        "total_steps": 1000,
        "steps": 1000,
        "trigger_word": "zorblat",
        "training_folder": f"trainings/{ident}",
        "rank": 16,
        "save_every": 2000,
        "max_step_saves_to_keep": 4,
        "batch_size": 1,
        "learning_rate": 0.0001,
        "gradient_accumulation": 1,
        "optimizer": "adamw8bit",
        "bypass_guidance_embedding": False,
        "base_model_path": "black-forest-labs/FLUX.1-dev",
        "sample_every": 250,
        "sample_steps": 25,
        "sample_prompts": [],
        "logs": "",
        "webhook_url": "",
        "celery_chain_task_id": ident,
        "source_images": [f"trainings/{ident}/inputs/0000.png"],
        "preprocessing_captioning_strategy": "trigger_only",
        "priority": 1,
    }
    assert {name: shown[name] for name in constant} == constant
    assert shown["created_at"].endswith("Z")
    assert await mesh.get(ident) | {"updated_at": shown["updated_at"]} == shown


async def test_all_19_members_are_taken_and_shown(mesh: Mesh) -> None:
    await mesh.put("shoes/a.png", b"x")
    given = {
        "training_type": "FULL",
        "entity_type": "STYLE",
        "entity_id": unknown(),
        "trigger_word": "zorblat",
        "rank": 4,
        "steps": 20,
        "learning_rate": 0.002,
        "sample_prompts": ["a [trigger] shoe"],
        "source_images": ["shoes/a.png"],
        "base_model_path": "garments",
        "bypass_guidance_embedding": True,
        "webhook_url": "https://example.com/hook",
        "origin_instance": "shop",
        "origin_zone": "eu",
        "origin_version": "1.2",
        "origin_tenant_id": "acme",
        "preprocessing_transforms": [{"type": "center_crop", "size": 64}],
        "preprocessing_captioning_strategy": "prompt",
        "preprocessing_captioning_prompt": "a zorblat shoe",
    }
    assert len(given) == 19
    shown = await mesh.create(**given)
    assert {name: shown[name] for name in given} == given
    assert shown["total_steps"] == 20


NULLABLE = [
    "training_type",
    "entity_type",
    "entity_id",
    "rank",
    "steps",
    "learning_rate",
    "sample_prompts",
    "base_model_path",
    "bypass_guidance_embedding",
    "webhook_url",
    "origin_instance",
    "origin_zone",
    "origin_version",
    "origin_tenant_id",
    "preprocessing_transforms",
    "preprocessing_captioning_strategy",
    "preprocessing_captioning_prompt",
]


async def test_null_equals_absent_and_the_answer_shows_the_default(mesh: Mesh) -> None:
    body = {"trigger_word": "zorblat", "source_images": [data_url()]}
    plain = (await mesh.http().post(PATH, json=body)).json()
    nulls = (await mesh.http().post(PATH, json=body | dict.fromkeys(NULLABLE))).json()
    own = {"id", "created_at", "updated_at", "training_folder", "celery_chain_task_id", "source_images"}
    assert {k: v for k, v in nulls.items() if k not in own} == {k: v for k, v in plain.items() if k not in own}


REFUSED: list[tuple[str, Any, list[Any]]] = [
    ("training_type", "TINY", ["training_type"]),
    ("entity_type", "SHOE", ["entity_type"]),
    ("entity_id", "seven", ["entity_id"]),
    ("trigger_word", None, ["trigger_word"]),
    ("trigger_word", "", ["trigger_word"]),
    ("trigger_word", "  ", ["trigger_word"]),
    ("trigger_word", "z" * 101, ["trigger_word"]),
    ("rank", 0, ["rank"]),
    ("rank", -4, ["rank"]),
    ("rank", 513, ["rank"]),
    ("rank", 1.5, ["rank"]),
    ("steps", 0, ["steps"]),
    ("learning_rate", 0, ["learning_rate"]),
    ("learning_rate", -0.1, ["learning_rate"]),
    ("sample_prompts", ["a", ""], ["sample_prompts", 1]),
    ("source_images", [], ["source_images"]),
    ("source_images", None, ["source_images"]),
    ("source_images", [data_url(), "no/such.png"], ["source_images", 1]),
    ("source_images", ["../../etc/passwd.png"], ["source_images", 0]),
    ("source_images", ["http://127.0.0.1/a.png"], ["source_images", 0]),
    ("source_images", ["http://169.254.169.254/latest"], ["source_images", 0]),
    ("source_images", ["aGVsbG8gd29ybGQgdGhpcyBpcyBubyBpbWFnZQ=="], ["source_images", 0]),
    ("source_images", ["staging:other/0.png"], ["source_images", 0]),
    ("webhook_url", "http://10.0.0.1/hook", ["webhook_url"]),
    ("webhook_url", "ftp://example.com/", ["webhook_url"]),
    (
        "preprocessing_transforms",
        [{"type": "resize", "size": 64}, {"type": "melt"}],
        ["preprocessing_transforms", 1, "type"],
    ),
    ("preprocessing_transforms", [{"size": 64}], ["preprocessing_transforms", 0, "type"]),
    ("preprocessing_transforms", [{"type": "resize", "size": 1}], ["preprocessing_transforms", 0, "size"]),
    ("preprocessing_transforms", ["resize"], ["preprocessing_transforms", 0]),
    ("preprocessing_captioning_strategy", "guess", ["preprocessing_captioning_strategy"]),
    ("preprocessing_captioning_strategy", "prompt", ["preprocessing_captioning_prompt"]),
]


async def test_what_cannot_be_is_refused_with_its_place_and_leaves_nothing(mesh: Mesh) -> None:
    client = mesh.http()
    for member, value, where in REFUSED:
        body = {"trigger_word": "zorblat", "source_images": [data_url()], member: value}
        answer = await client.post(PATH, json=body)
        assert answer.status_code == 422, (member, value, answer.text)
        assert ["body", *where] in [one["loc"] for one in answer.json()["detail"]], (member, value, answer.text)
    assert await mesh.objects() == []
    assert (await client.get(PATH)).json() == []


async def test_a_model_that_no_trainer_has_is_refused_where_that_is_known(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(trained_models=("garments",))
    answer = await mesh.http().post(PATH, json={"trigger_word": "z", "source_images": [data_url()]})
    assert answer.status_code == 422
    [told] = answer.json()["detail"]
    assert (told["loc"], "garments" in told["msg"]) == (["body", "base_model_path"], True)
    assert (await mesh.create(base_model_path="garments"))["base_model_path"] == "garments"


async def test_members_that_the_server_sets_are_ignored_or_refused_when_strict(mesh: Mesh) -> None:
    server_set: dict[str, Any] = {
        "optimizer": "sgd",
        "batch_size": 8,
        "gradient_accumulation": 4,
        "save_every": 1,
        "max_step_saves_to_keep": 9,
        "sample_every": 1,
        "sample_steps": 1,
        "priority": 3,
        "training_folder": "/etc",
    }
    shown = await mesh.create(**server_set)
    assert not {name for name, value in server_set.items() if shown[name] == value}
    for name, value in server_set.items():
        body = {"trigger_word": "z", "source_images": [data_url()], name: value}
        answer = await mesh.http().post(PATH, json=body, headers={"prefer": "handling=strict"})
        assert answer.status_code == 422
        assert [one["loc"] for one in answer.json()["detail"]] == [["body", name]]


async def test_the_list_is_a_bare_array_of_ten_newest_first(mesh: Mesh) -> None:
    await mesh.put("a.png", b"x")
    ids = [(await mesh.create(source_images=["a.png"]))["id"] for _ in range(12)]
    client = mesh.http()
    assert [one["id"] for one in (await client.get(PATH)).json()] == ids[:1:-1]
    paged = await client.get(PATH, params={"skip": 10, "limit": 5})
    assert [one["id"] for one in paged.json()] == ids[1::-1]
    for wrong in ({"limit": 0}, {"skip": -1}, {"limit": "x"}):
        assert (await client.get(PATH, params=wrong)).status_code == 422


async def test_unknown_malformed_and_foreign_trainings_are_not_there(mesh: Mesh) -> None:
    ident = (await mesh.create())["id"]
    other = mesh.http("globex")
    for call in ("", "/dataset", "/loss", "/loss.svg", "/loss.png", "/saves", "/events"):
        assert (await mesh.http().get(f"{PATH}{unknown()}{call}")).status_code == 404
        assert (await mesh.http().get(f"{PATH}seven{call}")).status_code == 422
        assert (await other.get(f"{PATH}{ident}{call}")).status_code == 404
    for call, body in (("/cancel", None), ("/continue", {"steps": 1}), ("/sample", {})):
        assert (await mesh.http().post(f"{PATH}{unknown()}{call}", json=body)).status_code == 404
        assert (await mesh.http().post(f"{PATH}seven{call}", json=body)).status_code == 422
        assert (await other.post(f"{PATH}{ident}{call}", json=body)).status_code == 404
    assert (await other.patch(PATH + ident, json={"priority": 3})).status_code == 404
    assert (await other.get(PATH)).json() == []
    assert [one["id"] for one in (await mesh.http("", ("support",)).get(PATH)).json()] == [ident]


async def test_tokens_scopes_and_tenants_are_asked_for(mesh: Mesh) -> None:
    client = mesh.http()
    assert (await client.post(PATH, headers={"authorization": ""}, json={})).status_code == 401
    body = {"trigger_word": "z", "source_images": [data_url()]}
    assert (await mesh.http(scopes=("read",)).post(PATH, json=body)).status_code == 403
    assert (await client.post(PATH, json=body | {"origin_tenant_id": "globex"})).status_code == 403
    operator = mesh.http("acme", ("operator",))
    assert (await operator.post(PATH, json=body | {"origin_tenant_id": "globex"})).json()[
        "origin_tenant_id"
    ] == "globex"


async def test_data_becomes_objects_and_never_comes_back_as_bytes(mesh: Mesh) -> None:
    await mesh.put("shoes/b.png", b"x")
    images = [data_url(), "https://example.com/c.png", "shoes/b.png", data_url("blue").partition(",")[2]]
    shown = await mesh.create(source_images=images)
    folder = f"{shown['training_folder']}/inputs/"
    paths = [f"{folder}0000.png", "https://example.com/c.png", "shoes/b.png", f"{folder}0003.png"]
    assert shown["source_images"] == paths
    assert await mesh.objects("trainings/") == [paths[0], paths[3]]
    assert await mesh.objects("staging/") == []
    [[kept]] = await mesh.rows("SELECT octet_length(request) FROM trainings")
    assert kept < 1000


async def test_large_images_come_by_the_upload_door(mesh: Mesh) -> None:
    out = io.BytesIO()
    Image.effect_noise((1200, 1200), 90).save(out, "PNG")
    shown = await mesh.create(source_images=[base64.b64encode(out.getvalue()).decode()])
    [path] = shown["source_images"]
    assert path == f"{shown['training_folder']}/inputs/0000.png"
    assert await mesh.training.objects.get("acme", path) == out.getvalue()
    assert await mesh.objects("staging/") == []


async def test_a_create_is_repeated_under_its_key(mesh: Mesh) -> None:
    client, body = mesh.http(), {"trigger_word": "zorblat", "source_images": [data_url()]}
    answers = [await client.post(PATH, json=body, headers={"idempotency-key": "k1"}) for _ in range(2)]
    assert [one.json()["id"] for one in answers] == [answers[0].json()["id"]] * 2
    assert answers[1].headers["idempotent-replayed"] == "true"
    other = await client.post(PATH, json=body | {"rank": 2}, headers={"idempotency-key": "k1"})
    assert other.status_code == 409
    assert len((await client.get(PATH)).json()) == 1
    assert len(await mesh.objects("trainings/")) == 1


async def test_a_tenant_has_so_many_trainings_under_way(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(tenant_waiting_trainings=2)
    first = await mesh.create()
    await mesh.create()
    body = {"trigger_word": "z", "source_images": [data_url()]}
    refused = await mesh.http().post(PATH, json=body)
    assert (refused.status_code, "2 waiting trainings" in refused.text) == (429, True)
    assert (await mesh.http("globex").post(PATH, json=body)).status_code == 200
    await mesh.http().post(f"{PATH}{first['id']}/cancel")
    await mesh.create()


async def test_a_request_brings_along_so_many_bytes(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(training_input_bytes=100)
    body = {"trigger_word": "z", "source_images": [data_url()] * 3}
    refused = await mesh.http().post(PATH, json=body)
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == ["body", "source_images"]
    assert await mesh.objects() == []


async def test_an_adapter_to_start_from_is_one_of_the_library(mesh: Mesh) -> None:
    client, body = mesh.http(), {"trigger_word": "z", "source_images": [data_url()]}
    for wrong in ("product/none.safetensors", "../x.safetensors"):
        refused = await client.post(PATH, params={"start_from": wrong}, json=body)
        assert (refused.status_code, refused.json()["detail"][0]["loc"]) == (422, ["query", "start_from"])
    await mesh.put("loras/product/old.safetensors", b"x", "shared")
    query: dict[str, str | int] = {
        "start_from": "product/old.safetensors",
        "seed": 7,
        "masked_loss": "true",
        "priority": 5,
    }
    assert (await client.post(PATH, params=query, json=body)).json()["priority"] == 5
    _, spec = await (await mesh.trainer()).begin()
    assert (spec.start_from_path, spec.start_from_tenant) == ("loras/product/old.safetensors", "shared")
    assert (spec.seed, spec.masked_loss) == (7, True)
