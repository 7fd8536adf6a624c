"""EDITING through HTTP: the shipped models make a picture and change it, alone and as steps of a workflow."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.garments.catalogue import GarmentFacts
from models.garments.draw import draw
from models.garments.ruler import Ruler, cloth_mask
from tests.e2e.bodies import data_url
from tests.e2e.harness import ENDED, RunningMesh, until

pytestmark = pytest.mark.timeout(600)

BASE = {"task_type": "EDITING", "origin_instance": "e2e", "width": 64, "height": 64, "seed": 1}


def _drawing(colour: str = "red") -> Image.Image:
    return Image.fromarray(draw(GarmentFacts("trousers", colour), np.random.default_rng(4)).picture)


def _done(client: Any, path: str) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        now = dict(client.get(path).json())
        return now if now["status"] in ENDED else None

    return until(ended, "it ends", 200)


def _edited(client: Any, **fields: Any) -> dict[str, Any]:
    answer = client.post("/api/v1/tasks/", json={**BASE, **fields})
    assert answer.status_code == 200, answer.text
    return _done(client, f"/api/v1/tasks/{answer.json()['id']}")


def _result(client: Any, path: str) -> Any:
    answer = client.get(f"/api/v1/storage/images/{path}")
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))


def test_an_instruction_changes_the_colour_and_keeps_the_shape(device_mesh: RunningMesh) -> None:
    with device_mesh.http("edits-colour") as client:
        before = _drawing()
        done = _edited(client, prompt="make it blue", base_image=data_url(before))
        assert done["status"] == "COMPLETED", done["errors"]
        assert done["result_image_path"].startswith(f"editings/{done['id']}/")
        assert (done["width"], done["height"], done["seed"]) == (64, 64, 1)
        assert done["base_image_path"].startswith(f"editings/{done['id']}/inputs/")
        after = _result(client, done["result_image_path"])
        assert Ruler(64).read(after).colour == "blue"
        old, new = cloth_mask(np.asarray(before)), cloth_mask(after)
        assert (old & new).sum() / (old | new).sum() > 0.8
        again = _edited(client, prompt="make it blue", base_image_url=done["base_image_path"])
        assert (_result(client, again["result_image_path"]) == after).all()


def test_a_mask_by_its_path_keeps_pixels_and_the_size_is_exact(device_mesh: RunningMesh) -> None:
    with device_mesh.http("edits-mask") as client:
        mask, before = Image.new("L", (64, 64), 0), _drawing()
        mask.paste(255, (0, 0, 64, 32))
        out = io.BytesIO()
        mask.save(out, "PNG")
        headers = {"content-type": "image/png"}
        stored = client.post("/api/v1/storage/images/mask.png", content=out.getvalue(), headers=headers)
        assert stored.status_code == 200
        config = {"mask_image": "mask.png", "fit": "stretch", "steps": 4}
        done = _edited(client, prompt="make it blue", base_image=data_url(before), config=config, width=100, height=70)
        after = _result(client, done["result_image_path"])
        assert after.shape == (70, 100, 3)
        stretched = np.asarray(before.resize((100, 70), Image.Resampling.LANCZOS))
        assert (after[37:] == stretched[37:]).all()
        assert (after[:30] != stretched[:30]).any()


def test_what_the_model_cannot_do_fails_once_and_says_why(device_mesh: RunningMesh) -> None:
    with device_mesh.http("edits-refused") as client:
        picture = data_url(_drawing())
        done = _edited(client, prompt="like this", base_image=picture, reference_images=[picture])
        assert done["status"] == "FAILED"
        assert (done["error_category"], done["retry_count"]) == ("VALIDATION", 0)
        assert done["errors"] == ["The model edits takes no reference images."]
        assert len(done["reference_images"]) == 1
        assert done["reference_image_path"] == done["reference_images"][0]
        answer = client.post("/api/v1/tasks/", json={**BASE, "prompt": "make it blue"})
        assert answer.status_code == 422


def test_a_generated_picture_is_edited_in_a_workflow(device_mesh: RunningMesh) -> None:
    with device_mesh.http("edits-workflow") as client:
        size = {"width": 64, "height": 64, "seed": 3}
        steps = [
            {
                "id": "draw",
                "task_type": "GENERATION",
                "depends_on": [],
                "input_mappings": [],
                "config": {"prompt": "red trousers", **size},
            },
            {
                "id": "edit",
                "task_type": "EDITING",
                "depends_on": ["draw"],
                "input_mappings": [{"from_step": "draw", "from_field": "result_image_path", "to_field": "base_image"}],
                "config": {"prompt": "make it blue", **size},
            },
        ]
        body = {"name": "generate and edit", "origin_instance": "e2e", "steps": steps}
        answer = client.post("/api/v1/workflows/", json=body)
        assert answer.status_code == 200, answer.text
        done = _done(client, f"/api/v1/workflows/{answer.json()['id']}")
        assert done["status"] == "COMPLETED", done
        edit = dict(client.get(f"/api/v1/tasks/{done['steps'][1]['task_id']}").json())
        assert edit["workflow_id"] == done["id"]
        assert Ruler(64).read(_result(client, edit["result_image_path"])).colour == "blue"
