import json
from pathlib import Path

import pytest
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_RESOURCE

from meshkit.worker.handlers import TaskFailed
from services.training.trainer.base_models import TrainableModels
from services.training.trainer.config import TrainerSettings


def model(folder: Path, name: str, architecture: str = "flux") -> str:
    folder.mkdir()
    (folder / "atelier.json").write_text(json.dumps({"name": name, "architecture": architecture}))
    return str(folder)


async def test_a_model_is_found_by_its_name_and_by_its_folder(tmp_path: Path) -> None:
    places = [model(tmp_path / "one", "ours"), model(tmp_path / "two", "theirs")]
    models = TrainableModels(places, allow_download=False)
    assert (await models.find("theirs")).folder == tmp_path / "two"
    assert (await models.find(places[0])).card.name == "ours"
    assert not (await models.find("ours")).shipped


async def test_the_model_that_ships_is_known_as_such() -> None:
    found = await TrainableModels(TrainerSettings().places, allow_download=False).find("garments")
    assert found.shipped


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("black-forest-labs/FLUX.1-dev", "is not trained by this installation; trained here: clips, ours."),
        ("clips", "of a kind that is not trained here"),
    ],
)
async def test_a_model_that_is_not_trained_here_is_refused_with_the_reason(
    tmp_path: Path, named: str, why: str
) -> None:
    places = [model(tmp_path / "one", "ours"), model(tmp_path / "two", "clips", "ltx"), "no/such-model", "/no/folder"]
    with pytest.raises(TaskFailed) as failed:
        await TrainableModels(places, allow_download=False).find(named)
    assert why in failed.value.message
    assert (failed.value.category, failed.value.retryable) == (ERROR_CATEGORY_RESOURCE, False)
    assert str(tmp_path) not in failed.value.message
