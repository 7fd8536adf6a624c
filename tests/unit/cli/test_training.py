"""Trainings are begun by options of the contract, and shown as they go."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from atelier.training.v1 import training_pb2
from typer.testing import CliRunner

from atelier_cli.client import Gateway
from atelier_cli.errors import CliError
from atelier_cli.folder import DataFolder, MeshRecord
from atelier_cli.main import app
from atelier_cli.sparkline import sparkline
from atelier_cli.trainings import TrainingView, span

IMAGES = "/api/v1/storage/images/"
BASE = {
    "id": "7",
    "status": "PENDING",
    "progress": 0.0,
    "current_step": 0,
    "total_steps": 4,
    "eta_seconds": None,
    "trigger_word": "ohwx",
    "created_at": "2026-11-26T10:00:00Z",
    "error_message": None,
    "local_model_path": None,
    "preprocessing_stage": None,
    "processed_files_count": None,
    "total_files_count": None,
}


def state(status: str, **more: Any) -> dict[str, Any]:
    return {**BASE, "status": status, **more}


class Mesh:
    """A gateway that keeps what it is sent, and plays a training's events."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.stored: dict[str, bytes] = {}
        self.refused: bytes | None = None
        self.events: list[dict[str, Any]] = []
        self.dataset: dict[str, Any] = {"images": [], "rejects": [], "manifest_path": None}
        self.curve: dict[str, Any] = {"losses": [], "smoothed": [], "validation": []}

    def gateway(self, *_: object) -> Gateway:
        transport = httpx.MockTransport(self.answer)
        return Gateway("http://mesh", lambda: "t", transport=transport, patience_seconds=0)

    def answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path.startswith(IMAGES):
            return self._image(request, path.removeprefix(IMAGES))
        body = json.loads(request.content) if request.content else None
        self.asked.append((request.method, str(request.url.raw_path, "ascii"), body))
        if path.endswith("/events"):
            lines = "".join(f"data: {json.dumps(one)}\n\n" for one in self.events)
            return httpx.Response(200, text=lines)
        if path.endswith("/dataset"):
            return httpx.Response(200, json=self.dataset)
        if path.endswith(("/loss.svg", "/loss.png")):
            return httpx.Response(200, content=f"drawn {request.url.query.decode()}".encode())
        if path.endswith("/loss"):
            return httpx.Response(200, json=self.curve)
        if path == "/api/v1/training/" and request.method == "GET":
            return httpx.Response(200, json=[state("TRAINING", current_step=3)])
        if "404" in path:
            return httpx.Response(404, json={"detail": "Training not found"})
        return httpx.Response(200, json=state("CANCELLED" if path.endswith("/cancel") else "PENDING"))

    def _image(self, request: httpx.Request, name: str) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, content=b"picture " + name.encode())
        if request.content == self.refused:
            return httpx.Response(422, json={"detail": [{"loc": ["body", "image"], "msg": "is no image"}]})
        self.stored[name] = request.content
        return httpx.Response(200, json={})


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mesh:
    mesh = Mesh()
    monkeypatch.setattr(Gateway, "of", mesh.gateway)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop").mkdir()
    for name in ("a.png", "b.jpg", "notes.txt"):
        (tmp_path / "shop" / name).write_bytes(name.encode())
    return mesh


def atelier(*arguments: str) -> tuple[str, str]:
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def test_every_member_of_a_training_is_an_option() -> None:
    text = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "400"}).stdout
    for field in training_pb2.CreateTraining.DESCRIPTOR.fields:
        if field.name != "source_images":
            assert f"--{field.name.replace('_', '-')} " in text
    for name in ("--start-from", "--seed", "--masked-loss", "--priority"):
        assert name in text
    assert "training-id" not in text
    assert "`[trigger]` stands for the trigger word" in text, "brackets are shown as they are"


def test_pictures_are_stored_once_and_options_are_members(mesh: Mesh) -> None:
    said, _ = atelier(
        *("train", "shop", "shop/a.png", "https://shop.example/c.png", "--trigger-word", "ohwx", "--steps", "40"),
        *("--entity-type", "product", "--learning-rate", "0.001", "--sample-prompts", "a [trigger]"),
        *("--preprocessing-transforms", '{"type": "flip"}', "--preprocessing-captioning-strategy", "auto"),
        *("--seed", "5", "--masked-loss"),
    )
    assert said == "7\n"
    [(method, path, body)] = mesh.asked
    assert (method, path) == ("POST", "/api/v1/training/?seed=5&masked_loss=true")
    assert sorted(mesh.stored.values()) == [b"a.png", b"b.jpg"]
    assert body.pop("origin_instance")
    assert body == {
        "trigger_word": "ohwx",
        "entity_type": "PRODUCT",
        "steps": 40,
        "learning_rate": 0.001,
        "sample_prompts": ["a [trigger]"],
        "preprocessing_transforms": [{"type": "flip"}],
        "preprocessing_captioning_strategy": "auto",
        "source_images": [*mesh.stored, "https://shop.example/c.png"],
    }


def test_files_keep_their_names_in_storage(mesh: Mesh) -> None:
    odd = Path("shop") / "Kleid, blau?.PNG"
    odd.write_bytes(b"odd")
    atelier("train", str(odd), "shop/a.png", "--trigger-word", "ohwx")
    first, second = mesh.asked[0][2]["source_images"]
    assert first.split("/")[0] == "uploads"
    assert first.endswith("/Kleid-blau.png")
    assert second.endswith("/a.png")


def test_what_is_no_picture_is_left_out_and_named(mesh: Mesh) -> None:
    mesh.refused = b"b.jpg"
    _, told = atelier("train", "shop", "--trigger-word", "ohwx")
    assert "Left out: shop/b.jpg: The mesh answered 422: image: is no image" in told
    assert mesh.asked[0][2]["source_images"] == list(mesh.stored)
    mesh.refused = b"a.png"
    with pytest.raises(CliError, match="None of the pictures"):
        atelier("train", "shop/a.png", "--trigger-word", "ohwx")
    with pytest.raises(CliError, match="is no JSON"):
        atelier("train", "shop", "--trigger-word", "ohwx", "--preprocessing-transforms", "flip")


@pytest.mark.parametrize(
    ("trained", "given", "sent"),
    [
        (("garments",), (), "garments"),
        (("garments",), ("--base-model-path", "mine"), "mine"),
        (("garments", "black-forest-labs/FLUX.1-dev"), (), None),
        ((), (), None),
    ],
)
def test_the_only_model_that_the_mesh_trains_is_taken_where_none_is_named(
    mesh: Mesh, trained: tuple[str, ...], given: tuple[str, ...], sent: str | None
) -> None:
    folder = DataFolder(Path(".data"))
    folder.make()
    folder.write_record(MeshRecord(1, "ready", 9000, trained=trained))
    with folder.held():
        _, told = atelier("train", "shop", "--trigger-word", "ohwx", *given)
    assert mesh.asked[-1][2].get("base_model_path") == sent
    assert ("Trains garments" in told) is (sent == "garments")


def test_of_several_models_that_the_mesh_trains_one_is_to_be_chosen(mesh: Mesh) -> None:
    folder = DataFolder(Path(".data"))
    folder.make()
    folder.write_record(MeshRecord(1, "ready", 9000, trained=("garments", "shoes")))
    with folder.held(), pytest.raises(CliError, match="--base-model-path: garments, shoes"):
        atelier("train", "shop", "--trigger-word", "ohwx")
    assert mesh.stored == {}


def played(*, ended: str = "COMPLETED") -> list[dict[str, Any]]:
    preparing = state("PREPROCESSING", preprocessing_stage="validating", processed_files_count=1, total_files_count=2)
    sample = {"step": 0, "index": 0, "prompt": "a ohwx", "seed": 42, "path": "trainings/7/samples/0.png", "url": None}
    losses = [{"step": step, "loss": 1.0 / step} for step in (1, 2, 3, 4)]
    measured = [{"step": 4, "bucket": "0.0-0.2", "loss": 0.2}, {"step": 4, "bucket": "0.2-0.4", "loss": 0.4}]
    end = {"local_model_path": "/data/models/loras/product/ohwx.safetensors"} if ended == "COMPLETED" else {}
    return [
        {"training": preparing},
        {"training": state("TRAINING", current_step=0), "samples": [sample]},
        {"training": state("TRAINING", current_step=4, eta_seconds=90), "losses": losses, "validation": measured},
        {"training": state(ended, error_message="The loss is no number.", **end), "samples": [sample], "final": True},
    ]


def test_a_watched_training_saves_its_samples_and_curve_beside_the_pictures(mesh: Mesh) -> None:
    mesh.events = played()
    mesh.dataset["rejects"] = [{"name": "b.jpg", "reason": "is damaged"}]
    said, told = atelier("train", "shop", "--trigger-word", "ohwx", "--watch")
    assert said == "7\n/data/models/loras/product/ohwx.safetensors\n"
    kept = Path("shop-training")
    assert (kept / "step-000000-0.png").read_bytes() == b"picture trainings/7/samples/0.png"
    assert (kept / "loss.svg").read_bytes() == b"drawn "
    assert len(list(kept.iterdir())) == 2
    lines = told.splitlines()
    assert lines[:2] == ["validating", "training"]
    assert "Left out: b.jpg is damaged" in lines


def test_a_training_that_fails_ends_with_its_reason(mesh: Mesh) -> None:
    mesh.events = played(ended="FAILED")
    with pytest.raises(CliError, match=r"Training 7 failed: The loss is no number\."):
        atelier("training", "watch", "7", "-o", "out")
    assert (Path("out") / "step-000000-0.png").exists(), "what came before is kept"
    mesh.events = played(ended="CANCELLED")
    with pytest.raises(CliError, match="was cancelled"):
        atelier("training", "watch", "7")


def test_trainings_are_listed_shown_and_cancelled(mesh: Mesh) -> None:
    said, _ = atelier("training", "list", "--limit", "5")
    assert "TRAINING" in said
    assert "3/4" in said
    assert mesh.asked[-1][1] == "/api/v1/training/?limit=5&skip=0"
    assert json.loads(atelier("training", "get", "7")[0])["id"] == "7"
    assert atelier("training", "cancel", "7")[0] == "7 CANCELLED\n"
    assert mesh.asked[-1][:2] == ("POST", "/api/v1/training/7/cancel")
    with pytest.raises(CliError, match="404: Training not found"):
        atelier("training", "get", "404")


def test_a_training_goes_on_and_draws_samples(mesh: Mesh) -> None:
    assert atelier("training", "continue", "7", "--steps", "50", "--learning-rate", "0.01")[0] == "7\n"
    assert mesh.asked[-1][1:] == ("/api/v1/training/7/continue", {"steps": 50, "learning_rate": 0.01})
    atelier("training", "sample", "7", "a [trigger] hat")
    method, path, sent = mesh.asked[-1]
    assert (method, path) == ("POST", "/api/v1/training/7/sample")
    assert sent == {"prompts": ["a [trigger] hat"]}


def test_a_dataset_is_shown_and_its_small_pictures_are_saved(mesh: Mesh) -> None:
    image = {
        "name": "a.png",
        "path": "x/images/1.png",
        "thumbnail_path": "x/thumbnails/1.webp",
        "caption": "ohwx [red] dress",
        "width": 64,
        "height": 48,
        "mask_path": None,
        "warnings": ["is enlarged 1.5 times"],
        "url": None,
        "thumbnail_url": None,
    }
    mesh.dataset = {"images": [image], "rejects": [{"name": "b.jpg", "reason": "is damaged"}], "manifest_path": "x"}
    said, told = atelier("training", "dataset", "7", "-o", "small")
    assert "64x48" in said
    assert "ohwx [red] dress" in said
    assert "is enlarged 1.5 times" in said
    assert told == "Left out: b.jpg is damaged\n"
    assert Path("small/001-a.webp").read_bytes() == b"picture x/thumbnails/1.webp"


def test_the_loss_is_a_line_or_a_drawing(mesh: Mesh) -> None:
    assert atelier("training", "loss", "7")[0] == "It has taken no step yet.\n"
    mesh.curve["losses"] = [{"step": 1, "loss": 0.5}]
    assert atelier("training", "loss", "7")[0] == "loss 0.5000  ▁\n"
    atelier("training", "loss", "7", "-o", "curve.png", "--dark")
    assert Path("curve.png").read_bytes() == b"drawn theme=dark"
    with pytest.raises(CliError, match="neither"):
        atelier("training", "loss", "7", "-o", "curve.gif")


def test_a_view_tells_the_stage_with_counts_and_time_left() -> None:
    view = TrainingView()
    stages = []
    for event in [{"training": state("PENDING")}, *played()]:
        view.take(event)
        stages.append(view.stage)
    expected = ["waiting for a trainer", "validating 1 of 2", "step 0 of 4", "step 4 of 4, 1 min left", "completed"]
    assert stages == expected
    assert view.curve.startswith("loss 0.")
    assert view.curve.endswith("validation 0.3000 at step 4")


def test_a_long_training_takes_no_more_memory() -> None:
    view = TrainingView()
    for start in range(0, 20_000, 200):
        losses = [{"step": step, "loss": 1.0} for step in range(start, start + 200)]
        view.take({"training": BASE, "losses": losses})
    assert 1000 < len(view.losses) <= 4000
    assert view.losses[-1] == pytest.approx(1.0)


def test_a_sparkline_shows_a_curve_in_its_width() -> None:
    assert sparkline([]) == ""
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([0.0, 1.0, 2.0, 3.0]) == "▁▃▆█"
    falling = sparkline([1.0 / (1 + step) for step in range(1000)], 20)
    assert len(falling) == 20
    assert (falling[0], falling[-1]) == ("█", "▁")


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (200, "3 min"), (7500, "2 h 5 min")])
def test_time_is_told_as_people_do(seconds: float, text: str) -> None:
    assert span(seconds) == text
