"""`atelier inspect` prints what a picture says of its making."""

import json
from pathlib import Path

import pytest
from PIL import Image

from atelier_cli.commands.inspect import inspect
from atelier_cli.errors import CliError
from meshkit.images.notes import PictureNotes, png_info


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    notes = PictureNotes("GENERATION", "a red [bold]dress[/bold]", model="garments", seed=7, settings={"steps": 4})
    path = tmp_path / "dress.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=png_info(notes, (8, 8)))
    return path


def test_notes_are_printed_one_a_line_as_they_are(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(picture)
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["prompt"] == "a red [bold]dress[/bold]"
    assert (lines["seed"], lines["model"], lines["steps"], lines["width"]) == ("7", "garments", "4", "8")


def test_values_stand_below_each_other_however_long_a_name_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = PictureNotes("REFINE", None, model="span", settings={"face_detail_denoise": 0.4})
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=png_info(notes, (8, 8)))
    inspect(tmp_path / "a.png")
    lines = capsys.readouterr().out.splitlines()
    assert {line.index(line.split()[1], len(line.split()[0])) for line in lines} == {len("face_detail_denoise") + 2}


def test_notes_are_printed_as_json(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(picture, as_json=True)
    assert json.loads(capsys.readouterr().out)["seed"] == 7


def test_a_file_without_notes_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="is no file"):
        inspect(tmp_path / "nowhere.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(CliError, match="is no picture"):
        inspect(tmp_path / "text.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(CliError, match="says nothing of its making"):
        inspect(tmp_path / "plain.png")
