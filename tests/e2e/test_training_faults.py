"""Trainings while their trainer is killed, stopped and drained, and trainings that are cancelled."""

import base64
import io
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from models.garments.catalogue import GarmentFacts
from models.garments.draw import draw
from tests.e2e.harness import RunningMesh, children, until

STEPS = 24
TERMS = {
    "ATELIER_TRAINER": "on",
    "ATELIER_DEVICE": "cpu",
    "ATELIER_TORCH_THREADS": "1",
    "ATELIER_TRAINER_STATE_SECONDS": "0.2",
    "ATELIER_TRAINER_PRESERVATION": "none",
    "ATELIER_TRAINING_SWEEP_DELAY_SECONDS": "1",
    "ATELIER_SHUTDOWN_GRACE_SECONDS": "20",
}


def picture(seed: int) -> str:
    content = io.BytesIO()
    facts = GarmentFacts("dress", "red", "dots", "blue")
    Image.fromarray(draw(facts, np.random.default_rng(seed), 96).picture).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


@pytest.fixture(scope="module")
def mesh(start_mesh: Callable[..., RunningMesh]) -> RunningMesh:
    return start_mesh(**TERMS)


def create(client: httpx.Client, **fields: Any) -> str:
    body = {
        "trigger_word": "zorblax",
        "base_model_path": "garments",
        "rank": 4,
        "steps": STEPS,
        "source_images": [picture(seed) for seed in range(3)],
        **fields,
    }
    answer = client.post("/api/v1/training/", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def now(client: httpx.Client, training: str) -> dict[str, Any]:
    return dict(client.get(f"/api/v1/training/{training}").json())


def stepped(client: httpx.Client, training: str) -> None:
    """Wait until a training has told of a step."""

    def step() -> bool:
        found = now(client, training)
        assert found["status"] in {"PENDING", "PREPROCESSING", "TRAINING"}, found
        return bool(found["current_step"] > 0)

    until(step, "a step", 300)


def resumed(client: httpx.Client, training: str, times: int) -> None:
    """Wait until so many attempts at a training have gone on from a state; steps of a lost one may be told late."""
    until(lambda: now(client, training)["logs"].count("Resumed after step") == times, f"resumed {times} times", 300)


def outcomes(mesh: RunningMesh, training: str) -> list[str]:
    with mesh.database() as connection:
        rows = connection.execute(
            "SELECT outcome FROM tasks.attempts WHERE task_id = %s ORDER BY attempt", (training,)
        ).fetchall()
    return [row[0] for row in rows]


def states(mesh: RunningMesh, training: str) -> set[str]:
    prefix = f"trainings/{training}/state/"
    return {path.removeprefix(prefix).split("/")[0] for path in mesh.objects() if path.startswith(prefix)}


def adapters(mesh: RunningMesh) -> set[str]:
    return {path for path in mesh.objects() if path.startswith("loras/") and path.endswith(".safetensors")}


def trainer_children(mesh: RunningMesh) -> list[int]:
    return [pid for pid in children(mesh.pid("trainer")) if "trainer.child" in " ".join(psutil.Process(pid).cmdline())]


def attempt_folders(mesh: RunningMesh) -> list[Path]:
    return list((mesh.path / "trainer" / "attempts").glob("*/*"))


def kill_child(mesh: RunningMesh, training: str) -> None:
    [child] = trainer_children(mesh)
    os.kill(child, signal.SIGKILL)


def kill_trainer(mesh: RunningMesh, training: str) -> None:
    before = mesh.restarts("trainer")
    mesh.kill("trainer")
    mesh.wait_restarted("trainer", before)


def lose_lease(mesh: RunningMesh, training: str) -> None:
    attempts = len(outcomes(mesh, training))
    stopped = mesh.kill("trainer", signal.SIGSTOP)
    until(lambda: len(outcomes(mesh, training)) == attempts + 1, "the lease is lost", 60)
    os.kill(stopped, signal.SIGCONT)


def drain(mesh: RunningMesh, training: str) -> None:
    before, attempts = mesh.restarts("trainer"), len(outcomes(mesh, training))
    mesh.kill("trainer", signal.SIGTERM)
    mesh.wait_restarted("trainer", before)
    until(lambda: len(outcomes(mesh, training)) == attempts + 1, "the lease is handed back", 60)


# What befalls a training, and how its attempt ends.
BLOWS: dict[Callable[[RunningMesh, str], None], str] = {
    kill_child: "FAILED",
    kill_trainer: "EXPIRED",
    lose_lease: "EXPIRED",
    drain: "RELEASED",
}


# Each attempt starts a child anew, which takes ten seconds and more: the short form has two of them struck.
@pytest.mark.parametrize(
    "blows",
    [
        pytest.param((kill_trainer, drain), id="trainer"),
        pytest.param(tuple(BLOWS), id="all", marks=pytest.mark.long),
    ],
)
def test_a_training_outlives_its_child_its_trainer_a_lost_lease_and_a_drain(
    mesh: RunningMesh, blows: Sequence[Callable[[RunningMesh, str], None]]
) -> None:
    older = adapters(mesh)
    with mesh.http() as client:
        training = create(client)
        stepped(client, training)
        until(lambda: states(mesh, training), "a state is stored")
        for number, strike in enumerate(blows, 1):
            strike(mesh, training)
            if number < len(blows):
                resumed(client, training, number)

        ended = ended_training(client, training)
        assert ended["status"] == "COMPLETED", (ended["error_message"], outcomes(mesh, training), ended["logs"])
        assert (ended["current_step"], ended["progress"]) == (STEPS, 100.0)
        assert outcomes(mesh, training) == [*(BLOWS[blow] for blow in blows), "COMPLETED"]
        assert ended["logs"].count("Resumed after step") == len(blows), ended["logs"]
        losses = client.get(f"/api/v1/training/{training}/loss").json()["losses"]
        assert losses[-1]["step"] == STEPS
        assert len(losses) == STEPS, "each step is told once"
        [adapter] = adapters(mesh) - older
        assert ended["local_model_path"].endswith(adapter.removeprefix("loras/"))
        until(lambda: not attempt_folders(mesh), "nothing is left on the disk")


def ended_training(client: httpx.Client, training: str) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        told = now(client, training)
        return told if told["status"] in {"COMPLETED", "FAILED", "CANCELLED"} else None

    return until(found, "the training has ended", 300)


def test_cancelled_trainings_leave_no_lease_no_file_and_a_free_slot(mesh: RunningMesh) -> None:
    with mesh.http("atelier-nord") as client:
        first = create(client, steps=100_000)

        def preparing() -> bool:
            # A busy machine may show the preparation too late.
            return now(client, first)["status"] in {"PREPROCESSING", "TRAINING"}

        until(preparing, "the first is prepared", pause_seconds=0.01)
        second = create(client, steps=100_000)  # it waits for the one slot
        assert client.post(f"/api/v1/training/{first}/cancel").json()["status"] == "CANCELLED"
        stepped(client, second)
        [child] = until(lambda: found if len(found := trainer_children(mesh)) == 1 else None, "one child trains")
        assert client.post(f"/api/v1/training/{second}/cancel").json()["status"] == "CANCELLED"
        until(lambda: not psutil.pid_exists(child), "the child has ended", 60)
        until(lambda: not attempt_folders(mesh), "nothing is left on the disk", 60)

        def left() -> set[str]:
            return {path for path in mesh.objects("atelier-nord") if path.startswith("trainings/")}

        until(lambda: not left(), "nothing is left in the store", 60)
        with mesh.database() as connection:
            [(leased,)] = connection.execute(
                "SELECT count(*) FROM tasks.tasks WHERE status = 'EXECUTING' AND id = ANY(%s)", ([first, second],)
            ).fetchall()
        assert leased == 0


def test_a_base_model_that_nobody_trains_is_refused_with_those_that_are(mesh: RunningMesh) -> None:
    with mesh.http("atelier-ost") as client:
        body = {"trigger_word": "zorblax", "source_images": [picture(0)]}
        refused = client.post("/api/v1/training/", json=body)
        assert refused.status_code == 422, refused.text
        [told] = refused.json()["detail"]
        assert (told["loc"], told["type"]) == (["body", "base_model_path"], "model_not_served")
        assert told["msg"].endswith("'black-forest-labs/FLUX.1-dev'; they have garments")
        assert client.get("/api/v1/training/").json() == []
