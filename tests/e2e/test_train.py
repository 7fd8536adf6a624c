"""`atelier train`: from a folder of pictures to an adapter, what it learned from, and what it drew on the way."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models.garments.catalogue import GarmentFacts
from models.garments.draw import draw
from tests.e2e.harness import RunningMesh

pytestmark = pytest.mark.timeout(600)

TENANT = "train"


def drawn(seed: int) -> Image.Image:
    facts = GarmentFacts("dress", "red", "dots", "blue")
    return Image.fromarray(draw(facts, np.random.default_rng(seed), 96).picture)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder of three pictures, a copy, one that is too small, and a file that is none."""
    folder = tmp_path / "shop"
    folder.mkdir()
    for seed in range(3):
        drawn(seed).save(folder / f"{seed}.png")
    drawn(1).resize((80, 80)).save(folder / "copy.jpg", quality=85)
    drawn(5).resize((20, 20)).save(folder / "small.png")
    (folder / "notes.png").write_text("these are my notes")
    return folder


def test_a_folder_becomes_an_adapter(device_mesh: RunningMesh, shop: Path) -> None:
    cli: Callable[..., Any] = device_mesh.cli
    made = cli(
        *("train", str(shop), "--trigger-word", "ohwx", "--entity-type", "product", "--tenant", TENANT, "--watch"),
        *("--base-model-path", "garments", "--steps", "2", "--rank", "4", "--seed", "3"),
        *("--sample-prompts", "a [trigger] dress", "--preprocessing-captioning-strategy", "auto", "--masked-loss"),
        timeout_seconds=300,
    )
    assert made.returncode == 0, made.stderr
    assert "Traceback" not in made.stderr
    training_id, adapter = made.stdout.split()
    assert adapter.startswith("product/ohwx")
    told = made.stderr.splitlines()
    first, *others = [line.removeprefix("Left out: ") for line in told if line.startswith("Left out: ")]
    assert "notes.png: The mesh answered 422" in first
    assert others == [
        "copy.jpg shows the same picture as 1.png",
        "small.png cannot be used: 20 x 20 pixels are too few for 64 x 64",
    ]
    kept = shop.with_name("shop-training")
    with Image.open(kept / "step-000000-0.png") as sample:
        assert sample.size == (64, 64)
    assert (kept / "loss.svg").read_bytes().startswith(b"<svg")

    with device_mesh.http(TENANT) as client:
        task = client.get(f"/api/v1/training/{training_id}").json()
        assert (task["status"], task["current_step"], task["progress"]) == ("COMPLETED", 2, 100.0)
        dataset = client.get(f"/api/v1/training/{training_id}/dataset").json()
    assert len(dataset["images"]) == 3
    assert [one["name"] for one in dataset["images"]] == ["0.png", "1.png", "2.png"]
    assert [one["name"] for one in dataset["rejects"]] == ["copy.jpg", "small.png"]
    for image in dataset["images"]:
        assert (image["width"], image["height"]) == (64, 64)
        assert image["caption"].startswith("ohwx, a red")
        assert image["mask_path"]
        small = httpx.get(image["thumbnail_url"], timeout=60)  # signed: no token is needed
        assert (small.status_code, small.headers["content-type"]) == (200, "image/webp")
        with Image.open(io.BytesIO(small.content)) as picture:
            assert max(picture.size) <= 256
        assert httpx.get(image["url"], timeout=60).status_code == 200

    shown = cli("training", "dataset", training_id, "--tenant", TENANT, "-o", str(shop.with_name("small")))
    assert shown.returncode == 0, shown.stderr
    assert "64x64" in shown.stdout
    assert len(list(shop.with_name("small").glob("*.webp"))) == 3
    listed = json.loads(cli("training", "list", "--tenant", TENANT, "--json").stdout)
    assert [one["id"] for one in listed] == [training_id]
    assert cli("training", "loss", training_id, "--tenant", TENANT).stdout.startswith("loss ")
    late = cli("training", "cancel", training_id, "--tenant", TENANT)
    assert late.returncode == 1
    assert "409" in late.stderr
    assert "Traceback" not in late.stderr


def test_what_cannot_be_trained_is_refused_with_its_place(device_mesh: RunningMesh, shop: Path) -> None:
    wrong = device_mesh.cli(
        *("train", str(shop / "0.png"), "--trigger-word", "ohwx", "--tenant", TENANT),
        *("--preprocessing-transforms", '{"type": "resize", "sise": 5}'),
    )
    assert wrong.returncode == 1
    assert "preprocessing_transforms" in wrong.stderr
    assert "sise" in wrong.stderr
    assert "Traceback" not in wrong.stderr
