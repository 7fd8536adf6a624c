"""Tasks are listed within any width, by age, and fetched under names of their own."""

import datetime as dt
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from atelier_cli.client import Gateway
from atelier_cli.commands import task as commands
from atelier_cli.errors import CliError
from atelier_cli.repeat import request_of
from atelier_cli.results import download_all, stored_paths, task_files, workflow_files

NOW = dt.datetime(2026, 11, 27, 12, 0, tzinfo=dt.UTC)
IDS = [f"01a21b41-584a-72b4-9ddc-8c8ac9330d{number:02d}" for number in range(4)]


def task(number: int = 0, **members: Any) -> dict[str, Any]:
    created = NOW - dt.timedelta(hours=number)
    return {
        "id": IDS[number],
        "task_type": "GENERATION",
        "status": "COMPLETED",
        "created_at": created.isoformat().replace("+00:00", "Z"),
        "prompt": "a red dress with a belt and a long, long train",
        **members,
    }


def shown(tasks: list[dict[str, Any]], width: int) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(commands.table(tasks, NOW, width))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_a_terminal_of_80_columns_shows_the_prompt_beside_whole_identifiers() -> None:
    lines = shown([task(), task(1), task(2, task_type="IMAGE_ADJUSTER", prompt=None)], 80)
    assert lines[1].startswith(f"{IDS[0]}  COMPLETED  ")
    assert "a red dress with a b" in lines[1]
    assert lines[1].endswith("…")
    assert lines[2].split()[2:4] == ["1", "h"]
    assert lines[3].endswith("IMAGE_ADJUSTER")
    assert all(len(line) <= 80 for line in lines)


def test_a_wide_terminal_shows_type_and_prompt() -> None:
    line = shown([task(1)], 200)[1]
    assert line == f"{IDS[1]}  GENERATION  COMPLETED  1 h  a red dress with a belt and a long, long train"


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ({"task_type": "REFINE", "base_image_path": "uploads/dress.png"}, "uploads/dress.png"),
        ({"task_type": "BACKGROUND_REMOVE", "input_image_paths": ["a/b.png", "c.png"]}, "a/b.png"),
        ({"task_type": "REFINE", "base_image_path": "a.png", "origin_reference": "order 7"}, "order 7"),
        ({"task_type": "EDITING", "base_image_path": "a.png", "prompt": "shorter"}, "shorter"),
        ({"task_type": "NOOP"}, ""),
        ({"task_type": "OF_ANOTHER_RELEASE"}, ""),
    ],
)
def test_a_task_without_a_prompt_is_told_by_its_reference_or_its_first_picture(
    members: dict[str, Any], what: str
) -> None:
    line = shown([task(**{"prompt": None, **members})], 200)[1]
    assert line.partition("0 s")[2].strip() == what


def test_a_prompt_is_shown_as_text_on_one_line() -> None:
    line = shown([task(prompt="a [bold]red[/x]\n\x1b[31mdress\t\u202e")], 200)[1]
    assert line.endswith("a [bold]red[/x] [31mdress")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("30 min", 1800), ("2h", 7200), ("7D", 604_800), ("2026-11-27T11:59:00+00:00", 60)],
)
def test_since_is_a_span_or_a_moment(text: str, seconds: int) -> None:
    assert commands.moment(text, NOW) == NOW - dt.timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "yesterday", "-2h", "2", "999999w", "2026-13-01"])
def test_since_that_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(CliError, match="is no moment"):
        commands.moment(text, NOW)


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0 s"), (59, "59 s"), (61, "1 min"), (7199, "1 h"), (172_801, "2 d")]
)
def test_an_age_is_told_in_its_largest_unit(seconds: int, text: str) -> None:
    assert commands.age((NOW - dt.timedelta(seconds=seconds)).isoformat(), NOW) == text


def test_a_list_ends_at_the_oldest_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_PAGE", 1)
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params["skip"])
        number = int(request.url.params["skip"])
        return httpx.Response(200, json=[task(number)] if number < len(IDS) else [])

    gateway = Gateway("http://mesh", lambda: "t", transport=httpx.MockTransport(answer))
    oldest = NOW - dt.timedelta(minutes=90)
    assert [one["id"] for one in commands._listed(gateway, {}, oldest, 10, 0)] == IDS[:2]
    assert [one["id"] for one in commands._listed(gateway, {}, None, 3, 1)] == IDS[1:4]
    assert asked == ["0", "1", "2", "1", "2", "3"]


def test_files_of_a_task_have_its_name() -> None:
    one = task(result_image_path="generations/x/1/image.png")
    assert task_files(one, Path("out")) == {Path(f"out/{IDS[0]}.png"): "generations/x/1/image.png"}
    many = task(task_type="BACKGROUND_REMOVE", result_image_paths=["b/x/1/0.png", "b/x/1/1.png"])
    assert [path.name for path in task_files(many, Path())] == [f"{IDS[0]}-1.png", f"{IDS[0]}-2.png"]


@pytest.mark.parametrize(
    ("members", "said"), [({"status": "PENDING"}, "is PENDING"), ({"result_image_path": None}, "has no files")]
)
def test_a_task_without_files_is_told(members: dict[str, Any], said: str) -> None:
    with pytest.raises(CliError, match=said):
        task_files(task(**members), Path())


def test_a_type_that_is_not_known_here_has_no_files() -> None:
    assert stored_paths("TELEPORTATION", {"result_image_path": "x"}) == []


def test_files_of_a_workflow_have_the_names_of_their_steps() -> None:
    steps = [
        {"step_id": "look", "task_type": "GENERATION", "result": {"result_image_path": "g/1/image.png"}},
        {
            "step_id": "framed",
            "task_type": "IMAGE_ADJUSTER",
            "result": {"items": [{"result_image_path": "a/1.png"}, None, {"result_image_path": "a/2.png"}]},
        },
        {"step_id": "late", "task_type": "GENERATION", "result": None},
    ]
    assert workflow_files({"steps": steps}, Path("o")) == {
        Path("o/look.png"): "g/1/image.png",
        Path("o/framed-1.png"): "a/1.png",
        Path("o/framed-2.png"): "a/2.png",
    }


def test_each_place_is_told_once_its_file_is_whole(tmp_path: Path) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=request.url.path[-1:].encode()))
    gateway = Gateway("http://mesh", lambda: "t", transport=transport)
    places = download_all(gateway, {tmp_path / "a": "x/1", tmp_path / "b": "x/2"})
    assert [(place.name, place.read_bytes()) for place in places] == [("a", b"1"), ("b", b"2")]


def test_a_request_is_what_its_task_shows() -> None:
    earlier = task(
        priority=3,
        seed=7,
        width=64,
        config={"steps": 4},
        origin_instance="elsewhere",
        origin_tenant_id="acme",
        origin_reference="order 7",
        workflow_id="w",
        subject_model_path=None,
        reference_image_path="generations/x/inputs/reference.png",
        active_provider_capabilities=[],
        errors=["x"],
        result_image_path="generations/x/1/image.png",
    )
    request = {
        "task_type": "GENERATION",
        "prompt": earlier["prompt"],
        "priority": 3,
        "seed": 7,
        "width": 64,
        "config": {"steps": 4},
        "origin_reference": "order 7",
        "reference_image_url": "generations/x/inputs/reference.png",
    }
    assert request_of(earlier) == request
    assert request_of(earlier, same_seed=False) == {name: value for name, value in request.items() if name != "seed"}


def test_a_type_that_is_not_known_here_is_not_repeated() -> None:
    with pytest.raises(CliError, match="TELEPORTATION are not known here"):
        request_of(task(task_type="TELEPORTATION"))
