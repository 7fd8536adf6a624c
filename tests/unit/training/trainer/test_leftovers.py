from typing import cast

from atelier.training.v1.trainer_service_pb2 import ResumeState, TrainingSpec
from atelier.training.v1.training_pb2 import TrainingSave

from meshkit.errors import unavailable
from meshkit.objects import ObjectStore
from services.training.trainer.leftovers import numbered, remove_leftovers
from tests.unit.training.trainer.fakes import FakeStore

KEPT = [
    "t/inputs/1-000000001.png",
    "t/state/2-000000005/state.json",
    "t/saves/1-000000003.safetensors",
    "t/dataset/1/manifest.json",
    "t/dataset/1/images/a.png",
    "t/samples/000000000-0.png",
    "t/state/3-000000009/state.json",
    "t/saves/notes.txt",
]
LEFT = ["t/state/1-000000003/state.json", "t/saves/2-000000005.safetensors", "t/dataset/2/images/a.png"]


def store() -> FakeStore:
    found = FakeStore()
    found.objects = dict.fromkeys([*KEPT, *LEFT], b"x")
    return found


def spec() -> TrainingSpec:
    return TrainingSpec(
        tenant="acme",
        folder="t/",
        resume=ResumeState(step=5, objects=["t/state/2-000000005/state.json"]),
        saves=[TrainingSave(step=3, path="t/saves/1-000000003.safetensors")],
        dataset_manifest_path="t/dataset/1/manifest.json",
    )


async def test_what_earlier_attempts_made_and_the_training_does_not_know_is_removed() -> None:
    objects = store()
    await remove_leftovers(cast("ObjectStore", objects), spec(), 3)
    assert sorted(objects.objects) == sorted(KEPT)


async def test_a_first_attempt_finds_none_and_a_store_that_is_away_keeps_nobody() -> None:
    objects = store()
    await remove_leftovers(cast("ObjectStore", objects), spec(), 1)
    objects.faults = [unavailable("away")]
    await remove_leftovers(cast("ObjectStore", objects), spec(), 3)
    assert len(objects.objects) == len([*KEPT, *LEFT])


def test_names_sort_by_their_steps_within_an_attempt() -> None:
    assert numbered(2, 30) == "2-000000030"
