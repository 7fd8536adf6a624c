import json
from pathlib import Path
from typing import cast

import pytest

from meshkit.errors import not_found, unavailable
from meshkit.objects import ObjectStore
from meshkit.worker.handlers import TaskFailed
from meshkit.worker.pacing import Pauses
from services.training.trainer.prepared import ObjectMissing, bring_back, download, files_of, images_of
from tests.unit.training.trainer.fakes import FakeStore, no_pause


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))


def picture(mask: str | None) -> dict[str, object]:
    return {
        "name": "a.png",
        "file": "images/1.png",
        "thumbnail": "thumbnails/1.jpg",
        "mask": mask,
        "bucket": [64, 48],
        "caption": "zorblax",
        "warnings": ["is small"],
    }


def test_files_that_name_the_others_are_stored_last(tmp_path: Path) -> None:
    files = files_of(["manifest.json", "images/1.png", "dataset.json"], tmp_path, "t/dataset/1/")
    assert [file.path for file in files] == [
        "t/dataset/1/images/1.png",
        "t/dataset/1/dataset.json",
        "t/dataset/1/manifest.json",
    ]
    assert [file.content_type for file in files] == ["image/png", "application/json", "application/json"]


@pytest.mark.parametrize("mask", [None, "masks/1.png"])
def test_pictures_are_told_as_the_manifest_has_them(tmp_path: Path, mask: str | None) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"pictures": [picture(mask)]}))
    [image] = images_of(tmp_path, "t/dataset/1/")
    assert (image.name, image.path, image.caption) == ("a.png", "t/dataset/1/images/1.png", "zorblax")
    assert (image.width, image.height, list(image.warnings)) == (64, 48, ["is small"])
    assert image.mask_path == ("t/dataset/1/masks/1.png" if mask else "")
    assert image.HasField("mask_path") is (mask is not None)


async def test_a_dataset_comes_back_with_what_it_names(tmp_path: Path) -> None:
    store = FakeStore()
    examples = [{"image": "images/1.png", "mask": "masks/1.png"}, {"image": "images/2.png", "mask": None}]
    store.objects = {
        "t/dataset/1/dataset.json": json.dumps({"examples": examples}).encode(),
        **{f"t/dataset/1/{name}": name.encode() for name in ("images/1.png", "images/2.png", "masks/1.png")},
        "t/dataset/1/manifest.json": b"{}",
    }
    await bring_back(cast("ObjectStore", store), "acme", "t/dataset/1/manifest.json", tmp_path / "dataset")
    assert files_in(tmp_path) == [
        "dataset/dataset.json",
        "dataset/images/1.png",
        "dataset/images/2.png",
        "dataset/masks/1.png",
    ]


@pytest.mark.parametrize("name", ["../plan.json", "/etc/passwd", 7])
async def test_a_dataset_that_names_what_is_not_its_own_is_refused(tmp_path: Path, name: object) -> None:
    store = FakeStore()
    store.objects["t/dataset.json"] = json.dumps({"examples": [{"image": name}]}).encode()
    with pytest.raises(TaskFailed, match="dataset"):
        await bring_back(cast("ObjectStore", store), "acme", "t/manifest.json", tmp_path / "dataset")


async def test_a_store_that_is_away_is_asked_again_and_given_up_after_some_tries(tmp_path: Path) -> None:
    store, pauses = FakeStore(), Pauses(sleep=no_pause)
    objects = cast("ObjectStore", store)
    store.objects["a"] = b"a"
    store.faults = [unavailable("away")] * 3
    await download(objects, "acme", "a", tmp_path / "a", pauses)
    store.faults = [unavailable("away")] * 4
    with pytest.raises(TaskFailed) as failed:
        await download(objects, "acme", "a", tmp_path / "a", pauses)
    assert failed.value.retryable
    store.faults = [not_found("object", "a")]
    with pytest.raises(ObjectMissing) as failed:
        await download(objects, "acme", "a", tmp_path / "a", pauses)
    assert not failed.value.retryable
