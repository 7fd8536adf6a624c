"""The demonstration shows every type of this machine, on one sheet."""

from pathlib import Path

from PIL import Image
from typer.testing import CliRunner

from atelier_cli.demo_all import SCENES
from atelier_cli.main import app
from atelier_cli.sheet import CELL, Panel, contact_sheet
from meshkit.catalog import PROVIDERS, TASK_TYPES


def test_every_public_type_of_this_machine_has_a_scene() -> None:
    local = {name for name in PROVIDERS["LOCAL"].tasks if not TASK_TYPES[name].internal}
    assert {scene.task_type for scene in SCENES} == local


def test_each_scene_is_a_command_with_options_that_exist() -> None:
    for scene in SCENES:
        text = CliRunner().invoke(app, [scene.arguments[0], "--help"], env={"COLUMNS": "400"}).stdout
        named = [one for one in scene.arguments if one.startswith("--")]
        assert all(one in text for one in named), (scene.name, named)


def test_a_sheet_has_a_cell_for_each_panel_and_shows_what_is_transparent(tmp_path: Path) -> None:
    wide, clear, text = tmp_path / "wide.png", tmp_path / "clear.png", tmp_path / "a.txt"
    Image.new("RGB", (200, 100), "red").save(wide)
    Image.new("RGBA", (50, 50), (0, 0, 0, 0)).save(clear)
    text.write_text("A red dress.")
    panels = [Panel("wide", wide), Panel("clear", clear), Panel("text", text), Panel("failed", None)]
    sheet = contact_sheet(panels, columns=2)
    assert sheet.width > 2 * CELL
    assert sheet.height > 2 * CELL
    cells = [(x + CELL // 2, y + CELL // 2) for y in (48, 48 + CELL + 48) for x in (14, 28 + CELL)]
    assert sheet.getpixel(cells[0]) == (255, 0, 0)
    ground = {sheet.getpixel((cells[1][0] + offset, cells[1][1])) for offset in range(0, 60, 5)}
    assert len(ground) == 2, "a chequered ground"
    for x, y in cells[2:]:
        box = sheet.crop((x - CELL // 2, y - CELL // 2, x + CELL // 2, y + CELL // 2))
        assert len(box.getcolors(10_000) or ()) > 2, "letters"
