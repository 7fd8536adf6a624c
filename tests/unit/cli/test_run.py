"""Commands for task types are made from the contract, and files of this machine go where it says."""

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from atelier_cli.client import Gateway, TaskProgress
from atelier_cli.commands import run
from atelier_cli.commands.workflow import with_settings
from atelier_cli.errors import CliError
from atelier_cli.inputs import LocalFiles, assignments, pictures
from atelier_cli.main import app
from atelier_cli.taskforms import form_of, public_types
from meshkit.catalog import TASK_TYPES

STARTS = {name: form_of(name).subject for name in public_types()}


class Mesh:
    """A gateway that keeps what it is sent, and ends each task at once."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.stored: dict[str, bytes] = {}
        self.result: dict[str, Any] = {}
        self.texts: list[str] = []

    def gateway(self, *_: object) -> Gateway:
        return Gateway("http://mesh", lambda: "t", transport=httpx.MockTransport(self.answer))

    def answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path.startswith("/api/v1/storage/images/"):
            name = path.removeprefix("/api/v1/storage/images/")
            if request.method == "POST":
                self.stored[name] = request.content
                return httpx.Response(200, json={})
            return httpx.Response(200, content=b"result of " + name.encode())
        if path.endswith("/events"):
            number = int(path.split("/")[-2])
            told: list[dict[str, Any]] = [{"task": self.task(number, "EXECUTING"), "text": text} for text in self.texts]
            told.append({"task": self.task(number, "COMPLETED"), "final": True})
            lines = "".join(f"event: task\ndata: {json.dumps(one)}\n\n" for one in told)
            return httpx.Response(200, text=lines)
        self.bodies.append(json.loads(request.content))
        return httpx.Response(200, json=self.task(len(self.bodies) - 1, "PENDING"))

    def task(self, number: int, status: str) -> dict[str, Any]:
        body = self.bodies[number]
        shown = {name: body[name] for name in TASK_TYPES[body["task_type"]].seeds if name in body}
        result = self.result if status == "COMPLETED" else {}
        return {"id": str(number), "task_type": body["task_type"], "status": status, **shown, **result}


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mesh:
    mesh = Mesh()
    monkeypatch.setattr(Gateway, "of", mesh.gateway)
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    return mesh


def atelier(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_each_type_has_a_command_with_its_members() -> None:
    for name in public_types():
        text = CliRunner().invoke(app, ["run", name, "--help"], env={"COLUMNS": "400"}).stdout
        for member in form_of(name).members:
            assert f"--{member.name.replace('_', '-')}" in text, (name, member.name)
        assert ("--count" in text) == (bool(TASK_TYPES[name].seeds) or name == "VIDEO_GENERATION")
    assert set(run.VERBS.values()) <= set(public_types())
    assert {name: one.name for name, one in STARTS.items() if one} == {
        "EDITING": "base_image",
        "REFINE": "base_image",
        "VIDEO_GENERATION": "input_image",
        "BACKGROUND_REMOVE": "input_image",
        "DETAIL_ENHANCER": "base_image",
        "BACKGROUND_FIX": "base_image",
        "IMAGE_ADJUSTER": "input_image",
        "FACE_ENHANCER": "input_image",
        "PHOTO_DETECTION": "input_image",
    }


def test_a_type_is_found_by_its_name_as_people_type_it(mesh: Mesh) -> None:
    mesh.result = {"result_image_path": "x/1/image.png"}
    for name in ("FACE_ENHANCER", "face-enhancer", "face"):
        atelier("run", name, "a.png")
    assert [one["task_type"] for one in mesh.bodies] == ["FACE_ENHANCER"] * 3


def test_a_file_goes_inside_where_its_member_takes_data(mesh: Mesh) -> None:
    mesh.result = {"result_image_path": "editings/1/image.png"}
    said = atelier("edit", "make it blue", "a.png", "--reference-images", "b.jpg", "--reference-images", "shop/c.png")
    [body] = mesh.bodies
    data = [base64.b64decode(one.partition(",")[2]) for one in (body["base_image"], body["reference_images"][0])]
    assert data == [b"a.png", b"b.jpg"]
    assert body["reference_images"][1] == "shop/c.png"
    assert (body["prompt"], body["task_type"]) == ("make it blue", "EDITING")
    assert said == "a-edit.png\n"
    assert Path("a-edit.png").read_bytes() == b"result of editings/1/image.png"
    assert not mesh.stored


def test_a_member_for_data_alone_is_chosen_for_a_file_and_the_other_for_an_address(mesh: Mesh) -> None:
    mesh.result = {"result_video_path": "videos/1/clip.mp4"}
    assert atelier("video", "it sways", "a.png", "https://example.com/b.png", "-o", "out") == (
        "out/a-video.mp4\nout/b-video.mp4\n"
    )
    atelier("video", "it turns", "a.png", "--count", "2", "--config", "seed=5")
    first, second, *others = mesh.bodies
    assert [one["config"]["seed"] for one in others] == [5, 6]
    assert base64.b64decode(first["input_image_data"].partition(",")[2]) == b"a.png"
    assert "input_image_url" not in first
    assert second["input_image_url"] == "https://example.com/b.png"


def test_a_file_is_stored_where_no_member_takes_data_and_once_however_often_it_is_named(mesh: Mesh) -> None:
    mesh.result = {"result_image_path": "refines/1/image.png"}
    settings = ("--upscale-factor", "2", "--no-face-detail-enabled", "--upscale-seed", "7")
    atelier("refine", "a.png", *settings, "--count", "3")
    [(path, data)] = mesh.stored.items()
    assert data == b"a.png"
    assert path.startswith("uploads/")
    assert path.endswith(".png")
    assert {one["base_image_url"] for one in mesh.bodies} == {path}
    assert [one["upscale_seed"] for one in mesh.bodies] == [7, 8, 9]
    assert {(one["upscale_factor"], one["face_detail_enabled"]) for one in mesh.bodies} == {(2.0, False)}
    assert sorted(one.name for one in Path().glob("a-refine*")) == [f"a-refine-{n}.png" for n in (1, 2, 3)]


def test_a_file_that_is_refused_is_named(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.content == b"b.jpg":
            return httpx.Response(422, json={"detail": [{"loc": ["file"], "msg": "is no image", "type": "x"}]})
        return mesh.answer(request)

    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(Gateway, "of", lambda *_: Gateway("http://mesh", lambda: "t", transport=transport))
    with pytest.raises(CliError, match=r"b\.jpg: The mesh answered 422"):
        atelier("cutout", "a.png", "b.jpg", "-o", "cut")
    assert not mesh.bodies


def test_pictures_of_a_folder_are_one_task_where_the_type_takes_many(mesh: Mesh) -> None:
    mesh.result = {"result_image_paths": ["", "backgrounds/1/1.png"], "errors": ["input_image_paths[0]: no subject"]}
    assert atelier("cutout", ".", "-o", "cut") == "cut/b-cutout.png\n"
    [body] = mesh.bodies
    assert [mesh.stored[one] for one in body["input_image_paths"]] == [b"a.png", b"b.jpg"]
    assert [one.name for one in Path("cut").iterdir()] == ["b-cutout.png"]


def test_a_text_is_printed_as_it_comes_and_each_part_once(mesh: Mesh) -> None:
    mesh.texts, mesh.result = ["Par", "Paris"], {"result_text": "Paris."}
    assert atelier("ask", "capital of France?", "--config", "temperature=0.5").endswith("Paris.\n")
    assert mesh.bodies[0]["config"] == {"temperature": 0.5}
    assert atelier("ask", "capital of France?", "-o", "answer.txt") == "answer.txt\n"
    assert Path("answer.txt").read_text() == "Paris.\n"
    Path("question.txt").write_text("How old?\n")
    atelier("ask", "@question.txt")
    assert mesh.bodies[-1]["prompt"] == "How old?"


def test_findings_are_printed_as_json_or_saved(mesh: Mesh) -> None:
    mesh.result = {"findings": {"people": 2, "blurred": False}}
    said = atelier("examine", "a.png")
    assert json.loads(said[said.index("{") :]) == {"people": 2, "blurred": False}
    assert atelier("examine", "a.png", "b.jpg", "-o", "found") == "found/a-examine.json\nfound/b-examine.json\n"
    assert json.loads(Path("found/b-examine.json").read_text())["people"] == 2


def test_any_member_is_set_by_name_a_file_too(mesh: Mesh) -> None:
    mesh.result = {"result_image_path": "x.png"}
    atelier("adjust", "a.png", "--set", "reference_image=@b.jpg", "--set", "priority=2", "--mode", "pad")
    [body] = mesh.bodies
    assert base64.b64decode(body["reference_image"].partition(",")[2]) == b"b.jpg"
    assert (body["priority"], body["mode"]) == (2, "pad")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("adjust", "*.gif"), "Nothing matches"),
        (("adjust", "@gone.png"), "cannot be read"),
        (("adjust", "a.png", "b.jpg", "-o", "one.png"), "need a folder"),
        (("adjust", "a.png", "--set", "nonsense"), "no NAME=VALUE"),
        (("run", "EXPERIMENTAL_FAL", "--fal-parameters", "{"), "is no JSON"),
        (("ask", "@gone.txt"), "cannot be read as text"),
    ],
)
def test_what_cannot_work_is_a_sentence(mesh: Mesh, arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(CliError, match=said):
        atelier(*arguments)
    assert not mesh.bodies


def test_a_folder_without_pictures_is_told(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="holds no picture"):
        pictures([str(tmp_path)])


def test_values_are_json_where_they_read_as_json() -> None:
    given = ["a=1", "b=true", "c=[1, 2]", "d=red = blue", "e=NaN", "f="]
    assert dict(assignments(given, "--set")) == {
        "a": 1, "b": True, "c": [1, 2], "d": "red = blue", "e": "NaN", "f": "",
    }  # fmt: skip


def test_files_in_the_steps_of_a_workflow_are_read_beside_it(mesh: Mesh, tmp_path: Path) -> None:
    described = {
        "name": "n",
        "steps": [
            {
                "id": "a",
                "task_type": "EDITING",
                "config": {"prompt": "@home", "base_image": "@a.png", "reference_images": ["@b.jpg", "c.png"]},
            },
            {"id": "b", "task_type": "REFINE", "config": {"base_image_url": "@a.png"}},
            {
                "id": "c",
                "task_type": "IMAGE_ADJUSTER",
                "for_each": {"items": [{"image": "@a.png", "word": "@x"}]},
                "input_mappings": [{"from_step": "$item", "from_field": "value.image", "to_field": "input_image"}],
            },
            "nonsense",
        ],
    }
    filled = LocalFiles(mesh.gateway(), tmp_path).in_workflow(described)["steps"]
    assert filled[0]["config"]["prompt"] == "@home"
    assert base64.b64decode(filled[0]["config"]["base_image"].partition(",")[2]) == b"a.png"
    assert filled[0]["config"]["reference_images"][1] == "c.png"
    [stored] = mesh.stored
    assert filled[1]["config"]["base_image_url"] == stored
    assert filled[2]["for_each"]["items"] == [{"image": stored, "word": "@x"}]


def test_members_of_steps_are_set_by_name() -> None:
    described = {"steps": [{"id": "a.b", "config": {"prompt": "x"}}, {"id": "c"}]}
    made = with_settings(described, {"a.b.prompt": "y", "c.width": 512, "on_failure": "cancel"})
    assert made == {
        "steps": [{"id": "a.b", "config": {"prompt": "y"}}, {"id": "c", "config": {"width": 512}}],
        "config": {"on_failure": "cancel"},
    }
    with pytest.raises(CliError, match="no step 'd'"):
        with_settings(described, {"d.width": 1})


def test_progress_may_carry_text() -> None:
    assert TaskProgress({}, None, None).text is None
