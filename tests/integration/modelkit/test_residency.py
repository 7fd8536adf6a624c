"""Models under a budget, on tiny ones of random weights."""

import shutil
import threading
import weakref
from pathlib import Path

import pytest

from modelkit.errors import ModelError, ModelErrorKind
from modelkit.residency import Models
from tests.integration.modelkit.conftest import build, lend_flux


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("models")
    return [str(build(root / name, seed=seed, name=name)) for seed, name in enumerate(("one", "two", "three"))]


@pytest.fixture(scope="module")
def size(folders: list[str]) -> int:
    models = Models(folders[0], "cpu", 1 << 30)
    with lend_flux(models):
        return models.resident()[0].bytes


def serve(folders: list[str], budget: int) -> Models:
    return Models(folders[0], "cpu", budget, extra_models=folders[1:])


def names(models: Models) -> list[str]:
    return [model.name for model in models.resident()]


def test_the_least_recently_used_model_makes_room(folders: list[str], size: int) -> None:
    models = serve(folders, int(2.5 * size))
    for name in ("one", "two", "one", "three"):
        with lend_flux(models, name):
            pass
    assert names(models) == ["one", "three"]


def test_a_model_larger_than_the_budget_is_a_resource_error(folders: list[str], size: int) -> None:
    with pytest.raises(ModelError, match="budget") as caught, lend_flux(serve(folders, size // 2)):
        pass
    assert caught.value.fault is ModelErrorKind.RESOURCE


def test_a_model_in_use_stays_and_the_next_one_waits_for_it(folders: list[str], size: int) -> None:
    models = serve(folders, int(1.5 * size))
    loaded = threading.Event()

    def other() -> None:
        with lend_flux(models, "two"):
            loaded.set()

    thread = threading.Thread(target=other)
    with lend_flux(models, "one"):
        thread.start()
        assert not loaded.wait(0.3)
        assert names(models) == ["one"]
        assert models.resident()[0].pins == 1
    assert loaded.wait(30)
    thread.join()
    assert names(models) == ["two"]


def test_parts_of_equal_content_are_held_once(tmp_path: Path, tiny: Path) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(tiny, twin)
    (twin / "atelier.json").write_text((tiny / "atelier.json").read_text().replace('"tiny"', '"twin"'))
    models = Models(str(tiny), "cpu", 1 << 30, extra_models=(str(twin),))
    with lend_flux(models, "tiny") as one, lend_flux(models, "twin") as two:
        assert one.components["vae"] is two.components["vae"]
        assert one.components["text_encoder_2"] is two.components["text_encoder_2"]
        assert one.components["transformer"] is not two.components["transformer"]
        assert models._held() < sum(model.bytes for model in models.resident())


def test_a_model_is_named_by_its_card_and_no_path_is_taken_from_a_task(folders: list[str]) -> None:
    models = Models(folders[0], "cpu", 1 << 30)
    with lend_flux(models, "one") as model:
        assert model.card.name == "one"
    for name in ("two", folders[1], "../one", "black-forest-labs/FLUX.1-dev"):
        with pytest.raises(ModelError, match="not served"), lend_flux(models, name):
            pass


def test_a_folder_that_holds_no_model_is_a_resource_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught, lend_flux(Models(str(tmp_path), "cpu", 1 << 30)):
        pass
    assert caught.value.fault is ModelErrorKind.RESOURCE


def test_many_threads_share_one_model(folders: list[str], size: int) -> None:
    models = serve(folders, 2 * size)
    seen = set()

    def use() -> None:
        with lend_flux(models) as model:
            seen.add(id(model))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 1
    assert models.resident()[0].pins == 0


def test_an_evicted_models_weights_are_gone(folders: list[str], size: int) -> None:
    models = serve(folders, int(1.5 * size))
    with lend_flux(models, "one") as model:
        weights = [weakref.ref(part) for part in model.components.values()]
    del model
    with lend_flux(models, "two"):
        assert names(models) == ["two"]
    assert [ref() for ref in weights] == [None] * len(weights)
