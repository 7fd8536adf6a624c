"""LoRA files of other tools through HTTP: uploaded, named by a task at once, and seen in the picture."""

import io
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from tests.e2e.harness import RunningMesh, ended_task, post_until_answered
from tests.loras.layouts import LAYOUTS, write

pytestmark = pytest.mark.timeout(600)

CONFIG = json.loads((Path(__file__).parents[2] / "models/garments/weights/transformer/config.json").read_text())
Picture = Any


def begin(client: httpx.Client, **fields: Any) -> str:
    request = {
        "origin_instance": "e2e",
        "task_type": "GENERATION",
        "prompt": "a red dress",
        "width": 64,
        "height": 64,
        "seed": 7,
        **fields,
    }
    return str(post_until_answered(client, "/api/v1/tasks/", request, str(uuid.uuid4()))["id"])


def finished(client: httpx.Client, task_id: str) -> Picture:
    done = ended_task(client, task_id)
    assert done["status"] == "COMPLETED", done["errors"]
    answer = client.get(f"/api/v1/storage/images/{done['result_image_path']}")
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")).astype(int)


def uploaded(
    client: httpx.Client, name: str, content: bytes, path: str = "/api/v1/lora/upload", **fields: str
) -> dict[str, Any]:
    answer = client.post(path, files={"file": (name, content)}, data=fields, timeout=120)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def difference(one: Picture, other: Picture) -> float:
    return float(np.abs(one - other).mean())


def torch_file(tensors: Mapping[str, tuple[int, ...]]) -> bytes:
    torch.manual_seed(3)
    out = io.BytesIO()
    torch.save({name: torch.rand(shape) * 0.4 - 0.2 for name, shape in tensors.items()}, out)
    return out.getvalue()


def test_files_of_all_tools_change_the_next_picture_and_two_act_by_their_weights(device_mesh: RunningMesh) -> None:
    files = {name: write(shapes(CONFIG), scale=0.2, seed=2) for name, shapes in LAYOUTS.items()}
    with device_mesh.http("loras") as client:
        paths = {
            name: uploaded(client, f"{name}.safetensors", content, entity_type="styles")["partial_path"]
            for name, content in files.items()
        }
        pickled = uploaded(client, "pickled.pt", torch_file(LAYOUTS["diffusers"](CONFIG)), entity_type="product")
        paths["torch"] = pickled["partial_path"]
        layouts = {one["partial_path"]: one["layout"] for one in client.get("/api/v1/lora/").json()}
        assert {name: layouts[path] for name, path in paths.items()} == {
            **{n: n for n in LAYOUTS},
            "torch": "diffusers",
        }
        both = {"style_model_path": paths["kohya"], "product_model_path": pickled["file_path"]}
        asked = {
            "base": begin(client),
            **{name: begin(client, style_model_path=path) for name, path in paths.items()},
            "half": begin(client, style_model_path=paths["kohya"], style_lora_weight=0.5),
            "both": begin(client, **both),
            "none": begin(client, **both, style_lora_weight=0.0, product_lora_weight=0.0),
            "product alone": begin(client, **both, style_lora_weight=0.0),
        }
        pictures = {name: finished(client, task_id) for name, task_id in asked.items()}
    base = pictures["base"]
    assert {name: difference(pictures[name], base) > 1 for name in paths} == dict.fromkeys(paths, True)
    assert difference(pictures["half"], base) > 1
    assert difference(pictures["half"], pictures["kohya"]) > 1
    assert difference(pictures["both"], pictures["kohya"]) > 1
    assert difference(pictures["both"], pictures["torch"]) > 1
    # A picture's last digits depend on what shares its batch.
    assert np.abs(pictures["none"] - base).max() <= 2
    assert np.abs(pictures["product alone"] - pictures["torch"]).max() <= 2


def test_a_shared_one_is_everyones_until_it_is_deleted(device_mesh: RunningMesh) -> None:
    shapes = LAYOUTS["diffusers"](CONFIG)
    with device_mesh.http("lora-admin", ("read", "write", "admin")) as admin, device_mesh.http("lora-user") as user:
        shown = uploaded(
            admin, "all.safetensors", write(shapes, scale=0.2, seed=5), "/api/v1/admin/lora/upload", entity_type="faces"
        )
        path = shown["partial_path"]
        base, changed = begin(user), begin(user, subject_model_path=path)
        assert difference(finished(user, base), finished(user, changed)) > 1
        own = uploaded(admin, "own.safetensors", write(shapes, scale=0.2, seed=6))["partial_path"]
        refused = user.post(
            "/api/v1/tasks/",
            json={"origin_instance": "e2e", "task_type": "GENERATION", "prompt": "p", "subject_model_path": own},
        )
        assert refused.status_code == 422
        deleted = admin.request("DELETE", "/api/v1/admin/lora", json={"partial_path": path})
        assert deleted.status_code == 200
        again = user.post(
            "/api/v1/tasks/",
            json={"origin_instance": "e2e", "task_type": "GENERATION", "prompt": "p", "subject_model_path": path},
        )
        assert again.status_code == 422
        assert again.json()["detail"][0]["loc"] == ["body", "subject_model_path"]
