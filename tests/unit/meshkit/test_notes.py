"""What a picture says of its making, written and read back."""

import json
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from meshkit.images.notes import PictureNotes, png_info, read_notes

NOTES = PictureNotes(
    task_type="GENERATION",
    prompt='ein rotes Kleid, "größer" 👗\nzweite Zeile',
    negative_prompt="blurry",
    model="garments",
    seed=2**53 - 1,
    settings={"steps": 20, "guidance_scale": 3.5, "strength": None, "loras": [{"slot": "style", "weight": 0.8}]},
)


def saved(folder: Path, notes: PictureNotes = NOTES) -> Path:
    Image.new("RGB", (48, 32), (200, 30, 40)).save(folder / "a.png", pnginfo=png_info(notes, (48, 32)))
    return folder / "a.png"


def test_what_is_written_is_read_back_whole(tmp_path: Path) -> None:
    assert read_notes(saved(tmp_path)) == {
        "task_type": "GENERATION",
        "prompt": NOTES.prompt,
        "negative_prompt": "blurry",
        "model": "garments",
        "seed": 2**53 - 1,
        "width": 48,
        "height": 32,
        "steps": 20,
        "guidance_scale": 3.5,
        "loras": [{"slot": "style", "weight": 0.8}],
    }


def test_other_programs_find_the_lines_that_they_know(tmp_path: Path) -> None:
    with Image.open(saved(tmp_path)) as image:
        assert image.info["Software"] == "Atelier"
        assert image.info["parameters"].split("\n") == [
            'ein rotes Kleid, "größer" 👗',
            "zweite Zeile",
            "Negative prompt: blurry",
            f"Steps: 20, CFG scale: 3.5, Seed: {2**53 - 1}, Size: 48x32, Model: garments",
        ]


def test_what_is_unknown_is_left_out(tmp_path: Path) -> None:
    path = saved(tmp_path, PictureNotes("REFINE"))
    assert read_notes(path) == {"task_type": "REFINE", "width": 48, "height": 32}
    with Image.open(path) as image:
        assert image.info["parameters"] == "\nSize: 48x32"


def test_a_picture_of_another_program_gives_its_lines_and_a_plain_one_nothing(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a cat\nSteps: 4")
    info.add_text("atelier", "no JSON")
    picture = Image.new("RGB", (8, 8))
    picture.save(tmp_path / "other.png", pnginfo=info)
    assert read_notes(tmp_path / "other.png") == {"parameters": "a cat\nSteps: 4"}
    picture.save(tmp_path / "plain.png")
    picture.save(tmp_path / "plain.jpg")
    assert read_notes(tmp_path / "plain.png") is None
    assert read_notes(tmp_path / "plain.jpg") is None


def test_the_json_is_plain_for_readers_of_any_language(tmp_path: Path) -> None:
    with Image.open(saved(tmp_path)) as image:
        assert json.loads(image.info["atelier"])["prompt"] == NOTES.prompt


def test_a_file_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(OSError, match="cannot identify"):
        read_notes(tmp_path / "x.png")
