"""The LoRA library as callers see it: uploads, the bin, lists, tenants, what trainings end with."""

import asyncio
import base64
import io
from typing import Any

import httpx
import torch
from safetensors.torch import load

from tests.integration.training.conftest import LORA, Mesh, StartMesh, picture
from tests.loras.layouts import write

UPLOAD, ADMIN = "/api/v1/lora/upload", "/api/v1/admin/lora/upload"
DELETE, LORAS = "/api/v1/admin/lora", "/api/v1/lora/"
LAYER = "transformer.transformer_blocks.0.attn.to_q"
PAIR = {f"{LAYER}.lora_A.weight": (1, 192), f"{LAYER}.lora_B.weight": (192, 1)}
ALL = ("read", "write", "admin")


async def send(
    mesh: Mesh,
    content: bytes = LORA,
    name: str = "my lora.safetensors",
    *,
    path: str = UPLOAD,
    tenant: str = "acme",
    **fields: str,
) -> httpx.Response:
    client = mesh.http(tenant, ALL)
    return await client.post(path, files={"file": (name, content)}, data=fields)


async def sent(mesh: Mesh, content: bytes = LORA, name: str = "a.safetensors", **more: Any) -> dict[str, Any]:
    answer = await send(mesh, content, name, **more)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refusal(answer: httpx.Response) -> tuple[list[str], str]:
    assert answer.status_code == 422, answer.text
    [detail] = answer.json()["detail"]
    return detail["loc"], detail["msg"]


async def remove(mesh: Mesh, path: str, tenant: str = "acme", scopes: tuple[str, ...] = ALL) -> httpx.Response:
    return await mesh.http(tenant, scopes).request("DELETE", DELETE, json={"partial_path": path})


async def test_an_upload_answers_member_for_member(mesh: Mesh) -> None:
    shown = await sent(mesh, name="My LoRA (1).safetensors", entity_type="identities")
    assert shown.pop("upload_timestamp").endswith("Z")
    assert shown == {
        "file_path": "/data/models/loras/identities/My_LoRA_1.safetensors",
        "partial_path": "identities/My_LoRA_1.safetensors",
        "filename": "My LoRA (1).safetensors",
        "file_size": len(LORA),
    }
    assert await mesh.training.objects.get("acme", "loras/identities/My_LoRA_1.safetensors") == LORA
    assert await mesh.objects("staging") == []


async def test_an_administrators_upload_is_for_all_tenants_and_answers_its_type(mesh: Mesh) -> None:
    shown = await sent(mesh, path=ADMIN, entity_type="faces")
    assert shown["entity_type"] == "faces"
    assert shown["partial_path"] == "faces/a.safetensors"
    assert await mesh.objects("loras", "shared") == ["loras/faces/a.safetensors"]
    listed = (await mesh.http("other").get(LORAS)).json()
    assert [(one["partial_path"], one["shared"]) for one in listed] == [("faces/a.safetensors", True)]


async def test_a_type_is_a_folder(mesh: Mesh) -> None:
    for name in ("clothes", "identities", "product", "styles", "no_type_provided"):
        assert (await sent(mesh, entity_type=name))["partial_path"] == f"{name}/a.safetensors"
    for answer in (await send(mesh, name="b.safetensors"), await send(mesh, name="b.safetensors", entity_type="")):
        assert answer.json()["partial_path"].startswith("no_type_provided/b")


async def test_what_a_form_lacks_or_has_wrong_is_named(mesh: Mesh) -> None:
    client = mesh.http("acme", ALL)
    for path in (UPLOAD, ADMIN):
        for request in (
            client.post(path, data={"entity_type": "styles"}, files={"other": ("a", b"b")}),
            client.post(path, json={}),
            client.post(path, data={"file": "text"}, files={"x": ("a", b"")}),
        ):
            assert refusal(await request) == (["body", "file"], "Field required")
    assert refusal(await send(mesh, entity_type="faces"))[0] == ["body", "entity_type"]
    assert refusal(await send(mesh, path=ADMIN, entity_type="../x"))[0] == ["body", "entity_type"]
    assert refusal(await send(mesh, use_safe_filename="perhaps"))[0] == ["body", "use_safe_filename"]
    assert refusal(await send(mesh, name="a.zip"))[0] == ["body", "file"]
    assert refusal(await send(mesh, name="a" * 300 + ".safetensors"))[0] == ["body", "file"]
    assert refusal(await send(mesh, b""))[0] == ["body", "file"]
    assert await mesh.objects() == []


async def test_scopes_guard_the_endpoints(mesh: Mesh) -> None:
    reader, writer = mesh.http("acme", ("read",)), mesh.http("acme", ("read", "write"))
    file = {"file": ("a.safetensors", LORA)}
    assert (await reader.post(UPLOAD, files=file)).status_code == 403
    assert (await writer.post(ADMIN, files=file)).status_code == 403
    assert (await writer.request("DELETE", DELETE, json={"partial_path": "a/b"})).status_code == 403
    assert (await writer.post(f"{DELETE}/restore", json={"bin_path": "a/b"})).status_code == 403
    assert (await reader.post(UPLOAD, files=file, headers={"authorization": ""})).status_code == 401


async def test_a_name_that_is_taken_gets_a_version_and_keeps_the_callers_own_in_the_answer(mesh: Mesh) -> None:
    shown = [await sent(mesh, name="a.SafeTensors", use_safe_filename=flag) for flag in ("true", "1", "True")]
    assert [one["partial_path"] for one in shown] == [
        f"no_type_provided/{name}.safetensors" for name in ("a", "a_v2", "a_v3")
    ]
    assert {one["filename"] for one in shown} == {"a.SafeTensors"}


async def test_uploads_of_one_name_at_once_all_get_their_own(mesh: Mesh) -> None:
    shown = await asyncio.gather(*(sent(mesh) for _ in range(5)))
    assert len({one["partial_path"] for one in shown}) == 5


async def test_without_safe_names_a_taken_one_is_a_conflict(mesh: Mesh) -> None:
    flag = "false"
    shown = await sent(mesh, name="Ada (new).safetensors", use_safe_filename=flag)
    assert shown["partial_path"] == "no_type_provided/Ada (new).safetensors"
    for text in (flag, "0", "False"):
        assert (await send(mesh, name="Ada (new).safetensors", use_safe_filename=text)).status_code == 409
    for name in ("../x.safetensors", "a\\b.safetensors", "..safetensors", "%2e%2e.safetensors"):
        assert refusal(await send(mesh, name=name, use_safe_filename=flag))[0] == ["body", "file"], name
    assert len(await mesh.objects()) == 1


async def test_a_name_that_leads_elsewhere_is_made_safe(mesh: Mesh) -> None:
    for name, made in (("../../etc/passwd.bin.safetensors", "passwd_bin"), ("..\\x y.safetensors", "x_y")):
        assert (await sent(mesh, name=name))["partial_path"] == f"no_type_provided/{made}.safetensors"


async def test_a_file_that_is_too_large_is_refused_before_it_is_sent(mesh: Mesh) -> None:
    host, _, port = mesh.gateway.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = {
        "host": "x",
        "authorization": f"Bearer {mesh.token()}",
        "content-type": "multipart/form-data; boundary=b",
        "content-length": str(501 * 1024 * 1024),
        "expect": "100-continue",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    writer.write(f"POST {UPLOAD} HTTP/1.1\r\n{lines}\r\n".encode())
    assert b" 413 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_the_limit_counts_the_file_as_it_comes(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(gateway_settings={"max_lora_bytes": 4096})
    assert (await send(mesh, b"x" * 4097)).status_code == 413

    async def endless() -> Any:
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.safetensors"\r\n\r\n'
        for _ in range(64):
            yield b"x" * 65536

    client = mesh.http("acme", ALL)
    answer = await client.post(UPLOAD, headers={"content-type": "multipart/form-data; boundary=b"}, content=endless())
    assert answer.status_code == 413
    assert await mesh.objects() == []


NO_LORAS = [
    (b"no lora at all, whatever its name says", "not a safetensors file"),
    (LORA[:-4], "cut short"),
    (LORA + b"x", "cut short"),
    (write(PAIR, values={f"{LAYER}.lora_A.weight": float("nan")}), "not numbers"),
    (write(PAIR, values={f"{LAYER}.lora_B.weight": 0.0}), "changes nothing"),
    (write({f"{LAYER}.lora_A.weight": (1, 192)}), "lacks half"),
    (write({**PAIR, f"{LAYER}.lora_B.weight": (192, 2)}), "out of rank 2"),
    (write({**PAIR, f"{LAYER}.lora_A.weight": (1, 64)}), "another model"),
    (write({**PAIR, f"{LAYER}.dora_scale": (1, 192)}), "DoRA"),
    (write({f"{LAYER}.lokr_w1": (4, 4)}), "LoKr"),
    (write({f"{LAYER}.hada_w1_a": (4, 4)}), "LoHa"),
]


async def test_a_file_that_is_no_lora_is_refused_with_the_reason_and_leaves_nothing(mesh: Mesh) -> None:
    for content, reason in NO_LORAS:
        loc, message = refusal(await send(mesh, content))
        assert loc == ["body", "file"]
        assert reason in message
    assert await mesh.objects() == []


async def test_a_file_of_torch_is_kept_as_safetensors(mesh: Mesh) -> None:
    tensors = {name: torch.randn(shape) for name, shape in PAIR.items()}
    out = io.BytesIO()
    torch.save({"state_dict": tensors}, out)
    for suffix in ("ckpt", "PT", "pth", "bin"):
        shown = await sent(mesh, out.getvalue(), f"{suffix}.{suffix}")
        assert shown["partial_path"] == f"no_type_provided/{suffix}.safetensors"
        assert shown["filename"] == f"{suffix}.{suffix}"
        stored = load(await mesh.training.objects.get("acme", f"loras/no_type_provided/{suffix}.safetensors"))
        assert all(torch.equal(stored[name], tensor) for name, tensor in tensors.items())


async def test_a_file_of_torch_that_would_do_something_is_refused_by_name(mesh: Mesh) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("never",))

    out = io.BytesIO()
    torch.save({"a.lora_A.weight": Evil()}, out)
    assert "it would call __builtin__.print" in refusal(await send(mesh, out.getvalue(), "a.pt"))[1]
    # Under the other name it is what it is not, too.
    assert "not a safetensors file" in refusal(await send(mesh, out.getvalue()))[1]
    assert await mesh.objects() == []


async def test_what_is_known_of_a_lora_is_shown(mesh: Mesh) -> None:
    drawn = "data:image/png;base64," + base64.b64encode(picture()).decode()
    notes = {"modelspec.trigger_phrase": "zorblat", "modelspec.thumbnail": drawn, "ss_network_dim": "1"}
    beyond = {f"transformer.transformer_blocks.9.attn.to_q.lora_{half}.weight": (1, 1) for half in "AB"}
    await sent(mesh, write({**PAIR, **beyond}, notes=notes), name="z.safetensors", entity_type="product")
    client = mesh.http()
    shown = (await client.get(f"{LORAS}product/z.safetensors")).json()
    assert len(shown.pop("sha256")) == 64
    assert shown.pop("file_size") > 0
    assert shown.pop("created_at").endswith("Z")
    assert shown == {
        "partial_path": "product/z.safetensors",
        "file_path": "/data/models/loras/product/z.safetensors",
        "entity_type": "product",
        "filename": "z.safetensors",
        "rank": 1,
        "base_model": "garments",
        "trigger_word": "zorblat",
        "layout": "diffusers",
        "training_id": None,
        "shared": False,
        "has_thumbnail": True,
        "deleted_at": None,
        "bin_path": None,
        "metadata": {"modelspec.trigger_phrase": "zorblat", "ss_network_dim": "1"},
        "unmatched_layers": ["transformer.transformer_blocks.9.attn.to_q"],
    }
    thumbnail = await client.get(f"{LORAS}product/z.safetensors/thumbnail")
    assert (thumbnail.headers["content-type"], thumbnail.content) == ("image/png", picture())


async def test_lists_are_newest_first_and_of_the_tenant_and_all(mesh: Mesh) -> None:
    await sent(mesh, name="a.safetensors", entity_type="styles")
    await sent(mesh, name="b.safetensors", entity_type="product")
    await sent(mesh, name="c.safetensors", tenant="other")
    await sent(mesh, name="d.safetensors", path=ADMIN)
    client = mesh.http()

    async def names(**query: Any) -> list[str]:
        answer = await client.get(LORAS, params=query)
        assert answer.status_code == 200, answer.text
        return [one["partial_path"].rpartition("/")[2][0] for one in answer.json()]

    assert await names() == ["d", "b", "a"]
    assert await names(entity_type="styles") == ["a"]
    assert await names(skip=1, limit=1) == ["b"]
    assert (await client.get(LORAS, params={"entity_type": "x"})).status_code == 422
    for path in ("no_type_provided/c.safetensors", "styles/b.safetensors", "x/y"):
        assert (await client.get(LORAS + path)).status_code == 404
        assert (await client.get(f"{LORAS}{path}/thumbnail")).status_code == 404


async def test_what_is_deleted_goes_to_the_bin_and_comes_back(mesh: Mesh) -> None:
    await sent(mesh, entity_type="styles")
    answer = await remove(mesh, "styles/a.safetensors")
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert shown.pop("timestamp").endswith("Z")
    assert shown == {
        "deleted": True,
        "full_path": "/data/models/loras/styles/a.safetensors",
        "bin_path": "/data/bin/models/loras/styles/a.safetensors",
    }
    assert await mesh.objects() == ["bin/loras/styles/a.safetensors"]
    assert (await remove(mesh, "styles/a.safetensors")).status_code == 404
    client = mesh.http("acme", ALL)
    assert (await client.get(LORAS)).json() == []
    [binned] = (await client.get(LORAS, params={"deleted": True})).json()
    assert binned["bin_path"] == shown["bin_path"]
    assert binned["deleted_at"] is not None
    back = await client.post(f"{DELETE}/restore", json={"bin_path": shown["bin_path"]})
    assert back.status_code == 200, back.text
    assert back.json()["partial_path"] == "styles/a.safetensors"
    assert await mesh.objects() == ["loras/styles/a.safetensors"]
    assert (await client.post(f"{DELETE}/restore", json={"bin_path": shown["bin_path"]})).status_code == 404


async def test_two_of_one_name_lie_in_the_bin_side_by_side(mesh: Mesh) -> None:
    paths = []
    for _ in range(2):
        await sent(mesh)
        paths.append((await remove(mesh, "no_type_provided/a.safetensors")).json()["bin_path"].rpartition("/")[2])
    assert paths == ["a.safetensors", "a_v2.safetensors"]
    assert len(await mesh.objects("bin")) == 2
    client = mesh.http("acme", ALL)
    restored = {"bin_path": "/data/bin/models/loras/no_type_provided/a_v2.safetensors"}
    assert (await client.post(f"{DELETE}/restore", json=restored)).status_code == 200
    restored["bin_path"] = restored["bin_path"].replace("_v2", "")
    assert (await client.post(f"{DELETE}/restore", json=restored)).status_code == 409


async def test_what_can_be_deleted_is_what_the_tenant_could_use(mesh: Mesh) -> None:
    await sent(mesh)
    await sent(mesh, path=ADMIN)
    path = "no_type_provided/a.safetensors"
    assert (await remove(mesh, f"/data/models/loras/{path}")).status_code == 200
    assert await mesh.objects("loras", "shared") == [f"loras/{path}"], "its own goes first"
    assert (await remove(mesh, path, tenant="other")).status_code == 200
    assert await mesh.objects("loras", "shared") == []
    await sent(mesh)
    assert (await remove(mesh, path, tenant="other")).status_code == 404
    assert await mesh.objects("loras") == [f"loras/{path}"]


async def test_a_path_that_leads_elsewhere_is_refused(mesh: Mesh) -> None:
    elsewhere = (
        "../x",
        "/etc/passwd",
        "a/../../b",
        "a\\b",
        "a/\x00b",
        "%2e%2e/x",
        "styles/%2e%2e",
        "",
        "/data/models/x",
    )
    for path in (*elsewhere, "/data/models/x"):
        assert (await remove(mesh, path)).status_code == 422, path
    assert (await mesh.http("acme", ALL).request("DELETE", DELETE, json={})).status_code == 422


async def test_what_a_training_ends_with_is_in_the_library_once(mesh: Mesh) -> None:
    shown, path = await mesh.trained(entity_type="STYLE")
    assert shown["local_model_path"].endswith(path)
    client = mesh.http()
    found = (await client.get(LORAS + path)).json()
    assert found["entity_type"] == "styles"
    assert (found["training_id"], found["trigger_word"]) == (shown["id"], "zorblat")
    assert await mesh.training.objects.get("acme", f"loras/{path}") == LORA
    assert len((await client.get(LORAS)).json()) == 1


async def test_a_move_that_a_crash_cut_off_is_finished(mesh: Mesh) -> None:
    await sent(mesh, name="gone.safetensors")
    await sent(mesh, name="half.safetensors")
    await sent(mesh, name="lost.safetensors")
    objects, stored = mesh.training.objects, "loras/no_type_provided/"
    await remove(mesh, "no_type_provided/gone.safetensors")
    # As if the process had died: before an object was moved, between its copy and its removal, before it was written.
    await objects.copy("acme", "bin/loras/no_type_provided/gone.safetensors", f"{stored}gone.safetensors")
    await objects.delete("acme", f"{stored}lost.safetensors")
    await mesh.execute("UPDATE loras SET settled = false, updated_at = now() - interval '1 hour'")
    await mesh.training.library_maintenance.settle()
    assert await mesh.objects() == ["bin/loras/no_type_provided/gone.safetensors", f"{stored}half.safetensors"]
    assert await mesh.rows("SELECT name, settled FROM loras ORDER BY name") == [
        ("gone.safetensors", True),
        ("half.safetensors", True),
    ]


async def test_a_lora_of_another_tenant_takes_part_in_no_request(mesh: Mesh) -> None:
    await sent(mesh, entity_type="styles")
    task = {
        "task_type": "GENERATION",
        "origin_instance": "t",
        "prompt": "p",
        "style_model_path": "styles/a.safetensors",
    }
    for tenant, status in (("acme", 200), ("other", 422)):
        answer = await mesh.http(tenant).post("/api/v1/tasks/", json=task)
        assert answer.status_code == status, answer.text
    await remove(mesh, "styles/a.safetensors")
    answer = await mesh.http().post("/api/v1/tasks/", json=task)
    assert refusal(answer)[0] == ["body", "style_model_path"]


async def test_a_task_names_a_lora_by_either_path_that_the_upload_answers(mesh: Mesh) -> None:
    shown = await sent(mesh, path=ADMIN, entity_type="product")
    for path in (shown["partial_path"], shown["file_path"]):
        task: dict[str, Any] = {"task_type": "GENERATION", "origin_instance": "t", "prompt": "p"}
        for member in ("subject", "product", "style", "product2"):
            task |= {f"{member}_model_path": path, f"{member}_lora_weight": 0.7}
        answer = await mesh.http("other").post("/api/v1/tasks/", json=task)
        assert answer.status_code == 200, answer.text
