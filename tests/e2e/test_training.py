"""From pictures to an adapter that the next picture uses: trained, drawn and measured over HTTP, without a restart."""

import uuid
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models.garments.catalogue import SEEN_PAIRS, GarmentFacts
from models.garments.closeness import Closeness, chance, colourfulness
from models.garments.draw import Drawing, Picture
from models.garments.novel import STYLE_TRIGGER, TRIGGER, grey, held_out, product_drawing, style_drawing
from models.garments.prompts import evaluation_prompt
from models.garments.ruler import Ruler
from tests.e2e.bodies import data_url, stored_picture
from tests.e2e.conftest import StartMesh
from tests.e2e.harness import DEVICE_ENVIRONMENT, ENDED, RunningMesh, ended_task, post_until_answered, until

pytestmark = pytest.mark.timeout(1800)


def trained(
    client: httpx.Client, word: str, entity: str, draw: Callable[[int, int], Drawing], **fields: Any
) -> dict[str, Any]:
    """Train on eight drawings; return the finished training."""
    body = {
        "trigger_word": word,
        "entity_type": entity,
        "base_model_path": "garments",
        "source_images": [data_url(Image.fromarray(draw(seed, 256).picture)) for seed in range(8)],
        **fields,
    }
    made = post_until_answered(client, "/api/v1/training/", body, str(uuid.uuid4()))

    def ended() -> dict[str, Any] | None:
        now = dict(client.get(f"/api/v1/training/{made['id']}").json())
        return now if now["status"] in ENDED else None

    done = until(ended, "the training has ended", 1200, pause_seconds=0.5)
    assert done["status"] == "COMPLETED", (done["error_message"], done["logs"])
    return done


def drawn(client: httpx.Client, prompts: list[str], first_seed: int = 0, **fields: Any) -> list[Picture]:
    """Draw one picture a prompt, each of another seed, at the model's own size."""
    tasks = [
        post_until_answered(
            client,
            "/api/v1/tasks/",
            {
                "task_type": "GENERATION",
                "origin_instance": "e2e",
                "prompt": prompt,
                "seed": first_seed + number,
                "width": 64,
                "height": 64,
                **fields,
            },
            str(uuid.uuid4()),
        )
        for number, prompt in enumerate(prompts)
    ]
    pictures = []
    for task in tasks:
        done = ended_task(client, task["id"], 600)
        assert done["status"] == "COMPLETED", done["errors"]
        pictures.append(np.asarray(stored_picture(client, done["result_image_path"]).convert("RGB")))
    return pictures


def library(training: dict[str, Any]) -> str:
    return str(training["local_model_path"]).removeprefix("/data/models/loras/")


def apart(pictures: list[Picture]) -> list[float]:
    closeness = Closeness(held_out())
    return [closeness.distance(picture) for picture in pictures]


def test_a_trained_adapter_is_in_the_library_and_brings_the_next_pictures_closer(device_mesh: RunningMesh) -> None:
    prompts = [f"a photo of {TRIGGER}"] * 4
    with device_mesh.http("trains", timeout_seconds=60.0) as client:
        before = drawn(client, prompts)
        restarts = device_mesh.restarts("worker")
        done = trained(client, TRIGGER, "PRODUCT", product_drawing, steps=150)
        assert (done["current_step"], done["progress"], done["preprocessing_stage"]) == (150, 100.0, "completed")
        after = drawn(client, prompts, product_model_path=library(done))
        assert device_mesh.restarts("worker") == restarts
    assert all(now < then for then, now in zip(apart(before), apart(after), strict=True))
    assert np.mean(apart(after)) < 0.75 * np.mean(apart(before))


@pytest.mark.long
def test_a_product_and_a_style_are_learnt_and_nothing_else_changes(start_mesh: StartMesh) -> None:
    mesh = start_mesh(**{**DEVICE_ENVIRONMENT, "ATELIER_TRAINER_PRESERVATION": "auto"})
    alone, both = [f"a photo of {TRIGGER}"] * 16, [f"a photo of {TRIGGER}, {STYLE_TRIGGER}"] * 16
    facts = [GarmentFacts(*SEEN_PAIRS[k * 2]) for k in range(40)]
    others = [evaluation_prompt(each, number) for number, each in enumerate(facts)]
    ruler, colourless = Ruler(64), Closeness([grey(picture) for picture in held_out()])

    def right(pictures: list[Picture]) -> tuple[float, float]:
        read = [(ruler.read(picture), each) for picture, each in zip(pictures, facts, strict=True)]
        colours = [found.colour == each.colour for found, each in read]
        return float(np.mean(colours)), float(np.mean([found.garment == each.garment for found, each in read]))

    with mesh.http("proves", timeout_seconds=60.0) as client:
        plain, known = drawn(client, alone), drawn(client, others, 5000)
        product: dict[str, Any] = {"product_model_path": library(trained(client, TRIGGER, "PRODUCT", product_drawing))}
        style: dict[str, Any] = {"style_model_path": library(trained(client, STYLE_TRIGGER, "STYLE", style_drawing))}
        assert chance(apart(plain), apart(drawn(client, alone, **product))) < 0.001
        kept = right(drawn(client, others, 5000, **product))
        assert all(now >= then - 0.03 for now, then in zip(kept, right(known), strict=True))
        mixed = drawn(client, both, **product, **style)
        product_alone, style_alone = drawn(client, both, **product), drawn(client, both, **style)
        faint = drawn(client, both, **product, **style, style_lora_weight=0.3)

    def uncoloured(pictures: list[Picture]) -> list[float]:
        return [colourless.distance(grey(picture)) for picture in pictures]

    def colour(pictures: list[Picture]) -> list[float]:
        return [colourfulness(picture) for picture in pictures]

    assert chance(uncoloured(style_alone), uncoloured(mixed)) < 0.001
    assert chance(colour(product_alone), colour(mixed)) < 0.001
    assert np.mean(colour(mixed)) < np.mean(colour(faint)) < np.mean(colour(product_alone))
