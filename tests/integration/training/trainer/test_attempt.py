"""Attempts at a training of a few steps on the shipped model: whole, killed, paused, cancelled, lost."""

import asyncio
import os
import random
import signal
from pathlib import Path

import psutil
import pytest
import torch
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_RESOURCE, ERROR_CATEGORY_VALIDATION
from safetensors import safe_open
from safetensors.torch import load_file

from meshkit.worker.handlers import Output, TaskCancelled, TaskFailed, WorkerUnfit
from tests.integration.training.trainer.conftest import FOLDER, Owner, TrainerRig, picture

CHILD_OF_PICTURES = "services.training.trainer.dataset.child"
PICTURES = {"a": picture(1), "b": picture(2), "c": picture(3)}


async def weights(rig: TrainerRig, owner: Owner, target: Path) -> dict[str, torch.Tensor]:
    [finish] = owner.finished
    await rig.objects.download("acme", finish.adapter.path, target)
    assert len(await asyncio.to_thread(target.read_bytes)) == finish.adapter.size
    with safe_open(target, "pt") as file:
        assert file.metadata() == dict(finish.adapter.metadata)
    return load_file(target)


async def test_attempts_that_are_killed_and_paused_end_with_the_weights_of_one_that_is_not(rig: TrainerRig) -> None:
    unbroken = Owner(sample_prompts=["a [trigger]"])
    unbroken.spec.save_every = 3
    await rig.upload(unbroken, **PICTURES, small=picture(4, 20))
    await rig.begin(unbroken)
    stages = [stage for stage, _, _ in unbroken.stages]
    assert list(dict.fromkeys(stages)) == ["downloading", "validating", "transforming", "captioning", "caching"]
    [dataset] = unbroken.datasets
    assert [(image.name, image.caption) for image in dataset.images] == [(f"{n}.png", "zorblax") for n in "abc"]
    assert [reject.name for reject in dataset.rejects] == ["small.png"]
    assert unbroken.steps == [1, 2, 3, 4, 5, 6]
    assert unbroken.buckets == {"0.00-0.25", "0.25-0.50", "0.50-0.75", "0.75-1.00"}
    assert [(sample.step, sample.prompt) for sample in unbroken.samples] == [(0, "a zorblax"), (6, "a zorblax")]
    assert [save.step for save in unbroken.saves] == [3]
    assert "Device: cpu." in unbroken.lines
    assert rig.progress[-1].step == rig.progress[-1].total == 6
    stored = await rig.stored()
    named = [*unbroken.states[-1].objects, unbroken.saves[0].path, unbroken.finished[0].adapter.path]
    named += [dataset.manifest_path, unbroken.finished[0].thumbnail_path]
    named += [path for image in dataset.images for path in (image.path, image.thumbnail_path)]
    assert {path.removeprefix(FOLDER) for path in named} <= stored
    assert not list((rig.folder / "1" / "out").iterdir()), "what is stored leaves the disk"
    expected = await weights(rig, unbroken, rig.folder / "unbroken.safetensors")

    broken = Owner(sample_prompts=["a [trigger]"])
    broken.spec.save_every = 3
    broken.spec.training.source_images.extend(unbroken.spec.training.source_images)
    killed = rig.begin(broken)
    await broken.stated.wait()
    pid = rig.processes[-1].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(TaskFailed) as failed:
        await killed
    assert failed.value.category == ERROR_CATEGORY_RESOURCE
    assert failed.value.retryable
    reached, told, before = broken.states[-1].step, len(broken.stages), list(broken.steps)
    assert before == list(range(1, len(before) + 1))
    assert len(before) >= reached, "the steps of a state are told before it"

    paused = rig.begin(broken)
    assert rig.context is not None
    broken.stated.clear()
    await broken.stated.wait()
    rig.context.pause()
    with pytest.raises(TaskCancelled):
        await paused
    assert len(broken.stages) == told, "the pictures are prepared once"
    assert broken.states[-1].step > reached
    assert f"Resumed after step {reached}." in broken.lines

    await rig.begin(broken)
    again = list(range(reached + 1, 7))  # the kill may have come after a step that no state holds
    assert broken.steps == before + again, "no step is taken again but those after the state that the kill left"
    assert [save.step for save in broken.saves] == [3]
    assert [sample.step for sample in broken.samples] == [0, 6]
    resumed = await weights(rig, broken, rig.folder / "broken.safetensors")
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    left = [path for path in await rig.stored() if path.split("/")[0] != "samples" and path.split("/")[1][0] == "1"]
    assert not left, "what the first training stored is unknown to the other one, and older than its attempts"


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
async def test_a_training_that_is_killed_at_three_random_moments_ends_with_the_same_weights(
    rig: TrainerRig, seed: int
) -> None:
    moments = random.Random(seed)
    unbroken, broken = Owner(), Owner()
    await rig.upload(unbroken, **PICTURES)
    broken.spec.training.source_images.extend(unbroken.spec.training.source_images)
    unbroken.spec.total_steps = broken.spec.total_steps = 400  # longer than all moments together
    await rig.begin(unbroken)
    expected = await weights(rig, unbroken, rig.folder / "unbroken.safetensors")
    for _ in range(3):
        broken.stepped.clear()
        attempt = rig.begin(broken)
        if moments.random() < 0.8:  # else while the child starts
            await broken.stepped.wait()
        await asyncio.sleep(moments.uniform(0, 2))
        while (pid := rig.processes[-1].pid) is None:
            assert not attempt.done()
            await asyncio.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises((TaskFailed, WorkerUnfit)):
            await attempt
    await rig.begin(broken)
    assert sorted(set(broken.steps)) == list(range(1, 401))
    resumed = await weights(rig, broken, rig.folder / "broken.safetensors")
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def children() -> set[int]:
    """Processes that train, or look at pictures, for this one."""
    found = psutil.Process().children(recursive=False)
    return {one.pid for one in found if {"services.training.trainer.child", CHILD_OF_PICTURES} & set(one.cmdline())}


async def cancelled(rig: TrainerRig, attempt: asyncio.Task[Output]) -> None:
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    assert rig.processes[-1].pid is None
    assert not children()


async def test_an_attempt_that_is_cancelled_among_its_pictures_leaves_no_process_and_no_object(rig: TrainerRig) -> None:
    owner = Owner()
    await rig.upload(owner, **PICTURES)
    attempt = rig.begin(owner)
    await owner.staged.wait()
    await cancelled(rig, attempt)
    assert not await rig.stored()


async def test_an_attempt_draws_what_is_wanted_now_and_is_cancelled_between_two_steps(rig: TrainerRig) -> None:
    owner = Owner()
    owner.spec.total_steps = 1000
    owner.wanted = ["a [trigger] on a chair"]
    await rig.upload(owner, **PICTURES)
    attempt = rig.begin(owner)
    while not (owner.samples and owner.states):
        await asyncio.sleep(0.02)
        assert not attempt.done()
    assert owner.samples[0].prompt == "a zorblax on a chair"
    await cancelled(rig, attempt)
    told = {path for state in owner.states for path in state.objects}
    assert {FOLDER + path for path in await rig.stored() if path.startswith("state/")} <= told


async def test_an_attempt_that_the_service_refuses_ends(rig: TrainerRig) -> None:
    owner = Owner()
    owner.spec.total_steps = 1000
    await rig.upload(owner, **PICTURES)
    attempt = rig.begin(owner)
    await owner.stated.wait()
    owner.lost = True
    with pytest.raises(TaskFailed, match="not the training's any more"):
        await attempt
    assert rig.processes[-1].pid is None
    told = {path for state in owner.states for path in state.objects}
    assert {FOLDER + path for path in await rig.stored() if path.startswith("state/")} == told


async def test_a_training_that_cannot_be_done_says_why(rig: TrainerRig) -> None:
    owner = Owner(base_model_path="black-forest-labs/FLUX.1-dev")
    await rig.upload(owner, **PICTURES)
    with pytest.raises(TaskFailed) as failed:
        await rig.begin(owner)
    assert "FLUX.1-dev is not trained by this installation; trained here: garments." in failed.value.message
    assert (failed.value.category, failed.value.retryable) == (ERROR_CATEGORY_RESOURCE, False)
    owner = Owner()
    await rig.upload(owner, tiny=picture(1, 20), words=b"these are words")
    with pytest.raises(TaskFailed) as failed:
        await rig.begin(owner)
    assert (failed.value.category, failed.value.retryable) == (ERROR_CATEGORY_VALIDATION, False)
    assert "tiny.png cannot be used" in failed.value.message
    assert "words.png" in failed.value.message
    assert not await rig.stored()
