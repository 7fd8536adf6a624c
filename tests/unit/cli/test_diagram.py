import io
import random
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from atelier_cli.diagram import BOX_HEIGHT, BOX_WIDTH, Diagram, DiagramStep, lay_out, levels_of, steps_of
from atelier_cli.errors import CliError
from atelier_cli.files import save
from atelier_cli.picture import png, svg

SVG = "{http://www.w3.org/2000/svg}"


def diamond() -> list[DiagramStep]:
    return [
        DiagramStep("d", "NOOP", ("b", "c", "a")),
        DiagramStep("a", "NOOP"),
        DiagramStep("b", "NOOP", ("a",), "RUNNING"),
        DiagramStep("c", "NOOP", ("a",), "FAILED"),
    ]


def random_steps(seed: int) -> list[DiagramStep]:
    chance = random.Random(seed)
    names = [f"s{number}" for number in range(chance.randint(1, 40))]
    return [
        DiagramStep(name, "NOOP", tuple(n for n in names[:at] if chance.random() < 0.1))
        for at, name in enumerate(names)
    ]


def test_a_step_stands_right_of_all_that_it_depends_on() -> None:
    assert levels_of(diamond()) == {"a": 0, "b": 1, "c": 1, "d": 2}


def test_a_cycle_is_told_by_its_steps() -> None:
    with pytest.raises(CliError, match=r"cycle.*: b, c\."):
        levels_of([DiagramStep("a", "NOOP"), DiagramStep("b", "NOOP", ("c",)), DiagramStep("c", "NOOP", ("b", "a"))])


@pytest.mark.parametrize(
    ("definition", "fault"),
    [
        ({}, "has no steps"),
        ({"steps": "a"}, "has no steps"),
        ({"steps": ["a"]}, "has no id"),
        ({"steps": [{"id": 3}]}, "has no id"),
        ({"steps": [{"id": "a", "depends_on": "b"}]}, "is no list of names"),
        ({"steps": [{"id": "a", "depends_on": ["b"]}]}, "a depends on b, which does not exist"),
        ({"steps": [{"id": "a"}, {"id": "a"}]}, "several steps a"),
    ],
)
def test_what_cannot_be_drawn_is_told(definition: dict[str, Any], fault: str) -> None:
    with pytest.raises(CliError, match=fault):
        steps_of(definition)


def test_steps_are_read_from_definitions_and_from_workflows_alike() -> None:
    wanted = {"id": "b", "task_type": "NOOP", "depends_on": ["a", "a"]}
    found = {"id": "row", "step_id": "b", "task_type": "NOOP", "dependencies": ["a"], "status": "RUNNING"}
    assert steps_of({"steps": [{"id": "a"}, wanted]})[1] == DiagramStep("b", "NOOP", ("a",))
    assert steps_of({"steps": [{"id": "row", "step_id": "a"}, found]})[1] == DiagramStep("b", "NOOP", ("a",), "RUNNING")


@pytest.mark.parametrize("seed", range(20))
def test_no_boxes_overlap_and_no_line_goes_through_a_box(seed: int) -> None:
    layout = lay_out("random", random_steps(seed))
    boxes = layout.boxes
    for at, one in enumerate(boxes):
        assert one.x >= 0
        assert one.y >= 0
        assert one.x + BOX_WIDTH <= layout.width
        assert one.y + BOX_HEIGHT <= layout.height
        assert all(abs(one.x - two.x) >= BOX_WIDTH or abs(one.y - two.y) >= BOX_HEIGHT for two in boxes[at + 1 :])
    for line in layout.lines:
        assert [x for x, _ in line] == sorted(x for x, _ in line)
        # Inside of a level a line is straight and level: its points pair up, all but the ends.
        for x, y in line[1:-1]:
            assert not any(b.x <= x <= b.x + BOX_WIDTH and b.y < y < b.y + BOX_HEIGHT for b in boxes)


def drawn() -> Diagram:
    return lay_out("<A> & \x00 B", [*diamond(), DiagramStep("x" * 100, "<>&", ("d",), "SOME_NEW_STATE")])


def test_svg_is_well_formed_and_shows_names_states_and_lines() -> None:
    root = ET.fromstring(svg(drawn()))
    texts = [one.text or "" for one in root.iter(f"{SVG}text")]
    assert texts[0] == "<A> &   B"
    assert {"a", "b", "c", "d", "NOOP  running", "NOOP  failed"} <= set(texts)
    assert any(text.startswith("xxx") and text.endswith("...") for text in texts)
    assert f"{'x' * 100}: <>&  some_new_state" in [one.text for one in root.iter(f"{SVG}title")]
    assert len(list(root.iter(f"{SVG}path"))) == 6


def test_png_has_the_colours_of_states(tmp_path: Path) -> None:
    layout = drawn()
    save(tmp_path / "w.png", png(layout))
    assert [file.name for file in tmp_path.iterdir()] == ["w.png"]
    with Image.open(tmp_path / "w.png") as image:
        assert image.size == (round(layout.width * 2), round(layout.height * 2))
        seen = {box.step.name: image.getpixel((round(box.x * 2 + 300), round(box.y * 2 + 90))) for box in layout.boxes}
    assert seen["b"] == (0xFF, 0xF3, 0xBF)
    assert seen["c"] == (0xFF, 0xE3, 0xE3)
    assert seen["a"] == (0xFF, 0xFF, 0xFF)


def test_a_picture_of_two_hundred_steps_in_a_chain_stays_small_enough_to_open() -> None:
    chain = [DiagramStep(f"s{at}", "NOOP", (f"s{at - 1}",) if at else ()) for at in range(200)]
    wide = [*chain, *(DiagramStep(f"w{at}", "NOOP") for at in range(200))]
    with Image.open(io.BytesIO(png(lay_out("long", wide)))) as image:
        assert 30_000_000 < image.width * image.height < 41_000_000


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="cannot be written"):
        save(tmp_path / "missing" / "w.svg", b"")
